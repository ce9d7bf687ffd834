"""Lesson 9.5 - a ledger of tokens: what the lessons know of an answer, a row a token.

    tokenizer 4.1 -> loss mask 6.2 -> log pi, log pi_ref 8.1 -> KL 9.4 -> score 7.2 -> rewards 8.2 -> V 8.1 -> advantages
    8.4, 9.1 -> ratio and clipping 8.3, 9.3

Nothing is computed here that a lesson has not computed before: this module only lays it side by side. An answer's numbers
stand in the row of the token that was chosen; the prompt's tokens are nobody's choice, and have an id and a loss mask alone.
"""

import copy

import numpy as np
import torch

from part_4.distributed import Process
from part_4.optimizer import build_optimizers, set_learning_rate
from part_6.collator import IGNORE, shift
from part_8 import train_ppo
from part_8.experience import make_experience
from part_8.gae import generalised_advantages, whiten
from part_8.policy import action_log_probs, distributions
from part_8.ppo_loss import clipped_surrogate
from part_8.rewards import score_rollout, token_rewards
from part_8.rollout import collect
from part_9 import train_grpo
from part_9.group_experience import Groups, make_group_experience
from part_9.grpo_loss import grpo_losses
from part_9.kl import kl_estimates

COLUMNS = {  # name: lesson, what it is; all but the first three are numbers of a choice
    "id": ("4.1", "bpe_tokenizer: the token's number"),
    "text": ("4.1", "bpe_tokenizer: its bytes as text"),
    "loss": ("6.2", "collator: 1 where fine-tuning has a loss, so where a token is the assistant's choice"),
    "log pi": ("8.1", "policy: log-probability, in nats, by the policy that sampled the answer"),
    "log ref": ("8.1", "policy: the same by the reference, the fine-tuned model"),
    "k1": ("9.4", "kl: log pi - log ref, the KL that PPO takes off the reward (8.2)"),
    "k3": ("9.4", "kl: exp(-k1) - 1 + k1, the KL in GRPO's loss"),
    "score": ("8.2", "rewards: what the reward model says of the whole answer (7.2), at its last token"),
    "r": ("8.2", "rewards: score - beta k1; these add up to the answer's score less beta times its KL"),
    "r white": ("8.4", "gae: r whitened: spread 1 in the batch, its mean kept; the unit of all that PPO learns from"),
    "V": ("8.1", "policy: the critic's value of the state before the token, in units of r white"),
    "GAE": ("8.4", "gae: generalised advantage of r white and V"),
    "A ppo": ("8.4", "gae: the same with mean 0 and spread 1 in the batch"),
    "A grpo": ("9.1", "group_advantage: the answer's score against the others of its group, for every token"),
    "rho ppo": ("8.3", "policy: probability after PPO's updates over that before"),
    "clip ppo": ("8.3", "ppo_loss: yes where PPO's gradient is cut off now"),
    "rho grpo": ("9.3", "policy: probability after GRPO's updates over that before"),
    "clip grpo": ("9.3", "grpo_loss: yes where GRPO's gradient is cut off now"),
}


def take_steps(model, stages, prompts, ppo, grpo):
    """One step of PPO and one of GRPO, from the same policy on the same answers.

    model: ActorCritic, which PPO trains; stages: Stages; prompts: list of Prompt; ppo, grpo: the trainers' flags. Returns
    the Experience, the GroupExperience, and the log-probabilities (B, T - 1) after each one's updates.
    """
    device, G = stages.reference.head.weight.device, grpo.group_size
    generator = torch.Generator(device).manual_seed(ppo.seed % 2**63)
    rollout = collect(model.policy, [prompt.ids for prompt in prompts], ppo.block_size, stages.stop_ids,
                      generator=generator, n_samples=G)
    scores = score_rollout(stages.reward_model, rollout, ppo.no_end_penalty)
    experience = make_experience(model, stages.reference, rollout, scores, ppo.beta, ppo.gamma, ppo.lam, ppo.whiten_rewards,
                                 ppo.whiten_advantages)
    policy = copy.deepcopy(model.policy)  # GRPO's, which has no critic
    groups = Groups([prompt for prompt in prompts for _ in range(G)], rollout.answers(), scores.cpu(), len(prompts), 0, 0)
    group = make_group_experience(policy, stages.reference, groups, grpo, stages.stop_ids[0], torch.float32, Process())
    optimizers = train_ppo.build_optimizers(model, ppo)
    set_learning_rate(optimizers[:1], ppo.lr)
    train_ppo.learn(model, optimizers, experience, ppo, np.random.default_rng(ppo.seed % 2**64))
    optimizers = build_optimizers(policy, "adamw", grpo.lr, grpo.beta2, grpo.weight_decay)
    train_grpo.learn(policy, optimizers, group, grpo, np.random.default_rng(grpo.seed % 2**64), Process())
    with torch.no_grad():
        after = [action_log_probs(distributions(one(rollout.tokens)), rollout.tokens) for one in (model.policy, policy)]
    return experience, group, after


def loss_mask(prompt, answer):
    """Whether fine-tuning has a loss on each token: a list of bool of all tokens. prompt, answer: lists of ids."""
    _, targets = shift(prompt + answer, [False] * len(prompt) + [True] * len(answer))
    return [False, *(target != IGNORE for target in targets)]  # nothing comes before the first token


def token_names(ids, tokenizer):
    """Each token's text as it is printed: one line, control characters and bytes that are no text escaped. A list of str."""
    return [repr(tokenizer.decode([id]))[1:-1] for id in ids]


def choice_columns(experience, group, after_ppo, after_grpo, ppo, grpo):
    """The numbers of every choice of a batch: name in COLUMNS -> (B, T - 1), bool for the clipped ones.

    experience: part_8's Experience, of unscaled scores and whitened as `ppo` says; group: the GroupExperience of the same
    answers; after_ppo, after_grpo: (B, T - 1) log-probabilities after each one's updates; ppo, grpo: the trainers' flags.
    ValueError where the two are not of the same answers.
    """
    if not torch.equal(experience.rollout.tokens, group.rollout.tokens):
        raise ValueError("the two experiences are of different answers")
    mask, old, ref = experience.rollout.mask, experience.log_probs, experience.ref_log_probs
    learnt = whiten(experience.rewards, mask, keep_mean=True) if ppo.whiten_rewards else experience.rewards
    generalised, _ = generalised_advantages(learnt, experience.values, mask, ppo.gamma, ppo.lam)
    _, clipped_ppo = clipped_surrogate(after_ppo, old, experience.advantages, ppo.clip)
    _, clipped_grpo = grpo_losses(after_grpo, group.log_probs, group.ref_log_probs, group.advantages, grpo.beta, grpo.kl,
                                  grpo.kl_weighted, grpo.clip, grpo.clip_high)
    return {
        "log pi": old, "log ref": ref, "k1": kl_estimates(old, ref, "k1"), "k3": kl_estimates(old, ref, "k3"),
        "score": token_rewards(experience.scores, old, ref, mask, beta=0.0), "r": experience.rewards, "r white": learnt,
        "V": experience.values, "GAE": generalised, "A ppo": experience.advantages,
        "A grpo": group.advantages[:, None].expand_as(old), "rho ppo": (after_ppo - old).exp(), "clip ppo": clipped_ppo,
        "rho grpo": (after_grpo - group.log_probs).exp(), "clip grpo": clipped_grpo}


def table_lines(ids, names, learnt, columns, heading=True):
    """Rows of text, aligned, at most 150 characters: a list of str.

    ids, names, learnt: of N tokens; columns: name -> (N,) of `choice_columns`, or none for tokens that nobody chose;
    heading: two lines above, the columns' names and lessons.
    """
    choices = list(COLUMNS)[3:]
    cells = [list(COLUMNS), [lesson for lesson, _ in COLUMNS.values()]] if heading else []
    for i, (id, name, is_learnt) in enumerate(zip(ids, names, learnt, strict=True)):
        numbers = [columns[choice][i] for choice in choices] if columns else [None] * len(choices)
        cells.append([id, f"'{name}'", int(is_learnt), *map(_cell, numbers)])
    return [f"{id:>5} {name:14.14}{learnt:>4}" + "".join(f"{cell:>{max(8, len(choice) + 1)}}"
            for choice, cell in zip(choices, rest)) for id, name, learnt, *rest in cells]


def _cell(value):
    if value is None:
        return "."
    if value.dtype == torch.bool:
        return "yes" if value else "-"
    return f"{round(value.item(), 3) + 0.0:.3f}"  # + 0.0: no minus before a zero
