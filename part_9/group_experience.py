"""Lesson 9.1 - groups of answers: G to each prompt from one pass over it, and what is known of them before learning.

    prompts  ->  G answers each  ->  rewards  ->  advantages within each group  ->  log pi_old, log pi_ref

Groups whose answers are all scored alike teach nothing; with dynamic sampling (Yu et al. 2025, "DAPO", section 3.2) other
prompts are asked in their place. Processes share the prompts out, and then each knows all answers. Spread is that of the
scores, before a penalty for overlong answers.
"""

from typing import NamedTuple

import numpy as np
import torch

from part_0.cli import InputError
from part_0.device import autocast
from part_0.onednn import packed_weights
from part_4.distributed import gather
from part_6.curriculum import draw_batch
from part_8.policy import action_log_probs, distributions, entropies
from part_8.rollout import Rollout, as_rollout, collect
from part_9.group_advantage import as_groups, group_advantages, has_spread
from part_9.grpo_loss import overlong_penalty


class Groups(NamedTuple):
    """Answers and their rewards, the G to a prompt side by side. prompts: list of B Prompt; answers: list of B lists of ids;
    scores: (B,) fp32 on the CPU; n_asked, n_spread: groups that were asked for, and those of them whose rewards differ;
    n_lost: answers of groups that were left out, as a reward was no number; asked_scores: all rewards of the others, also of
    groups that were not kept."""

    prompts: list
    answers: list
    scores: torch.Tensor
    n_asked: int
    n_spread: int
    n_lost: int
    asked_scores: torch.Tensor = torch.empty(0)


class GroupExperience(NamedTuple):
    """rollout: Rollout; scores, advantages: (B,); mask: (B, T - 1) bool, the choices that are learnt from; log_probs,
    ref_log_probs, entropy: (B, T - 1), as of part_8's Experience."""

    rollout: Rollout
    scores: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    log_probs: torch.Tensor
    ref_log_probs: torch.Tensor
    entropy: torch.Tensor

    def select(self, rows):
        """Some rows only. rows: indices."""
        return GroupExperience(self.rollout.select(rows), *(part[rows] for part in self[1:]))


def ask(policy, prompts, G, n_new, stop_ids, temperature, seed, chunk, process):
    """G answers to each prompt, side by side: a list of lists of ids, the same in all processes.

    prompts: list of Prompt; seed: list of int; chunk: prompts asked at a time, each chunk with random numbers of its own, so
    that with one `chunk` answers do not depend on the number of processes.
    """
    device, own = policy.head.weight.device, []
    for number, start in enumerate(range(0, len(prompts), chunk)):
        if number % process.world_size == process.rank:
            generator = torch.Generator(device).manual_seed(int(np.random.default_rng([*seed, number]).integers(2**63)))
            rollout = collect(policy, [prompt.ids for prompt in prompts[start:start + chunk]], n_new, stop_ids, temperature,
                              generator=generator, n_samples=G)
            own.append((number, rollout.answers()))
    return [answer for _, answers in sorted(sum(gather(own), [])) for answer in answers]


def shared_out(function, n, process):
    """function(rows) of all n rows, each process computing a part: a tuple of tensors on the CPU, the same in all.

    function: takes a slice, gives a tuple of tensors with as many rows; an InputError of one process is raised in all.
    """
    bounds = [n * rank // process.world_size for rank in range(process.world_size + 1)]
    rows, parts, error = slice(*bounds[process.rank:process.rank + 2]), (), None
    try:
        if rows.start < rows.stop:  # there may be fewer rows than processes
            parts = tuple(part.cpu() for part in function(rows))
    except InputError as raised:
        error = str(raised)
    gathered, errors = zip(*gather((parts, error)))
    for error in errors:
        if error is not None:
            raise InputError(error)
    return tuple(torch.cat(columns) for columns in zip(*filter(None, gathered)))


def gather_groups(policy, stages, reward, config, step, process):
    """The Groups of a step; they depend on weights, flags and step alone. reward: a `Reward`. With config.resample only
    groups with spread are kept, and others asked in place of the rest, up to so many times."""
    G, end = config.group_size, stages.stop_ids[0]
    n_groups, rounds = config.batch_size // G, 1 + config.resample
    chunk = (config.rollout_size or config.batch_size // process.world_size) // G
    lengths = [len(prompt.ids) for prompt in stages.prompts]
    groups = Groups([], [], torch.empty(0), 0, 0, 0)
    for attempt in range(rounds):
        missing = n_groups - len(groups.prompts) // G
        if not missing:
            break
        drawn = draw_batch("uniform", lengths, lengths, config.seed, step * rounds + attempt, config.steps * rounds,
                           n_groups)
        asked = [stages.prompts[i] for i in drawn[:missing]]
        answers = ask(policy, asked, G, config.block_size, stages.stop_ids, config.temperature,
                      [config.seed % 2**64, step, attempt], chunk, process)
        prompts = [prompt for prompt in asked for _ in range(G)]

        def judge(rows, prompts=prompts, answers=answers):
            rollout = as_rollout([prompt.ids for prompt in prompts[rows]], answers[rows], end)
            return [reward(prompts[rows], rollout.to(policy.head.weight.device))]

        [scores] = shared_out(judge, len(answers), process)
        usable = as_groups(scores, G).isfinite().all(1)
        spread = has_spread(scores, G) & usable
        kept = ((spread if config.resample else usable)[:, None].expand(-1, G).flatten()).tolist()
        groups = Groups(groups.prompts + [prompt for prompt, is_kept in zip(prompts, kept) if is_kept],
                        groups.answers + [answer for answer, is_kept in zip(answers, kept) if is_kept],
                        torch.cat([groups.scores, scores[torch.tensor(kept)]]), groups.n_asked + missing,
                        groups.n_spread + int(spread.sum()), groups.n_lost + int((~usable).sum()) * G,
                        torch.cat([groups.asked_scores, as_groups(scores, G)[usable].flatten()]))
    return groups


@torch.no_grad()
def make_group_experience(policy, reference, groups, config, end, dtype, process):
    """The GroupExperience of `groups`, on the policy's device. reference: a ModernGPT, or None, and the policy stands in its
    place; end: the end token's id."""
    device = policy.head.weight.device
    rollout = as_rollout([prompt.ids for prompt in groups.prompts], groups.answers, end).to(device)
    scores, mask = groups.scores.to(device), rollout.mask
    learnt = scores
    if config.overlong == "penalty":
        learnt = scores - overlong_penalty(mask.sum(1), config.block_size, config.overlong_margin)
    elif config.overlong == "mask":
        mask = mask & rollout.ended[:, None]

    def assess(rows):
        tokens = rollout.tokens[rows]
        with autocast(device, dtype), packed_weights(policy):
            own = distributions(policy(tokens), config.temperature)
        ref = own
        if reference is not None:
            with autocast(device, dtype), packed_weights(reference):
                ref = distributions(reference(tokens), config.temperature)
        return action_log_probs(own, tokens), action_log_probs(ref, tokens), entropies(own)

    parts = shared_out(assess, len(scores), process)
    return GroupExperience(rollout, scores, group_advantages(learnt, config.group_size, config.normalise), mask,
                           *(part.to(device) for part in parts))
