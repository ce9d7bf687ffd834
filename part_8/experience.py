"""Lesson 8.4 - experience: all that is known of a batch of answers before anything is learnt from it.

    rollout  ->  scores  (reward model)
             ->  log pi_old, V, log pi_ref  (one pass each)  ->  rewards  ->  advantages and returns

It is made once a step by the policy that answered; the epochs that follow only read it.
"""

import statistics
from typing import NamedTuple

import torch

from part_0.device import autocast
from part_0.onednn import packed_weights
from part_6.prompt_template import decode_answer
from part_7.gold_utility import gold_utility
from part_8.gae import generalised_advantages, masked_mean, whiten
from part_8.policy import action_log_probs, distributions, entropies, kept_tokens
from part_8.rewards import token_rewards
from part_8.rollout import Rollout


class Experience(NamedTuple):
    """rollout: Rollout; scores: (B,), as they went into the rewards; all else (B, T - 1), a column a choice. log_probs,
    ref_log_probs: of policy and reference; values: V; entropy: of the policy's distribution; rewards: with the KL penalty,
    not whitened; advantages, returns: of the rewards that are learnt from; kept: (B, T - 1, V) bool or None, the tokens that
    top-k and top-p left."""

    rollout: Rollout
    scores: torch.Tensor
    log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    values: torch.Tensor
    entropy: torch.Tensor
    rewards: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    kept: torch.Tensor | None

    def select(self, rows):
        """Some rows only. rows: indices, or a bool for each row."""
        return Experience(self.rollout.select(rows), *(None if part is None else part[rows] for part in self[1:]))

    def text(self, row, prompts, tokenizer):
        """One question and its answer, for people. prompts: the list of Prompt that was answered."""
        answer = decode_answer(self.rollout.answers()[row], tokenizer)
        return f"{prompts[row].messages[-1]['content']} -> {answer}{'' if self.rollout.ended[row] else ' ...'}"


@torch.no_grad()
def make_experience(model, reference, rollout, scores, beta, gamma=1.0, lam=0.95, whiten_rewards=True,
                    whiten_advantages=True, temperature=1.0, top_k=None, top_p=None, dtype=torch.float32):
    """The Experience of a rollout.

    model: ActorCritic; reference: ModernGPT; scores: (B,); beta: of the KL penalty; gamma, lam: of the advantages;
    temperature, top_k, top_p: those of the rollout; dtype: the matrix products' precision.
    """
    tokens, mask = rollout.tokens, rollout.mask
    with autocast(tokens.device, dtype), packed_weights(model), packed_weights(reference):
        logits, values = model(tokens)
        ref_logits = reference(tokens)
    kept = kept_tokens(logits, tokens, temperature, top_k, top_p)
    policy, ref = (distributions(one, temperature, kept) for one in (logits, ref_logits))
    log_probs, ref_log_probs = (action_log_probs(one, tokens) for one in (policy, ref))
    values = torch.where(mask, values[:, :-1], 0.0)
    rewards = token_rewards(scores, log_probs, ref_log_probs, mask, beta)
    learnt = whiten(rewards, mask, keep_mean=True) if whiten_rewards else rewards
    advantages, returns = generalised_advantages(learnt, values, mask, gamma, lam)
    if whiten_advantages:
        advantages = whiten(advantages, mask)
    return Experience(rollout, scores, log_probs, ref_log_probs, values, entropies(policy),
                      rewards, advantages, returns, kept)


def rollout_figures(experience):
    """What is logged of an Experience before it is learnt from: a dict of floats, in nats where they are such.

    kl: of an answer, the sum of log pi - log pi_ref over its tokens; kl_per_token; entropy, of a token; length, tokens of an
    answer; ended, the share with an end token; score, score_std.
    """
    mask, ended = experience.rollout.mask, experience.rollout.ended
    log_ratio = torch.where(mask, experience.log_probs - experience.ref_log_probs, 0.0)
    return {"score": experience.scores.mean().item(), "score_std": experience.scores.std(correction=0).item(),
            "kl": log_ratio.sum(1).mean().item(), "kl_per_token": masked_mean(log_ratio, mask).item(),
            "entropy": masked_mean(experience.entropy, mask).item(),
            "length": mask.sum(1).float().mean().item(), "ended": ended.float().mean().item()}


def gold_figures(experience, prompts, tokenizer):
    """{"gold": mean utility of the answers}; nothing for prompts that are no tasks. prompts: those that were answered."""
    if prompts[0].task is None:
        return {}
    answers = zip(prompts, experience.rollout.answers(), experience.rollout.ended.tolist(), strict=True)
    return {"gold": statistics.fmean(gold_utility(one.task, decode_answer(ids, tokenizer), ended)
                                     for one, ids, ended in answers)}
