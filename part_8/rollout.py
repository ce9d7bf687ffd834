"""Lesson 8.4 - rollouts: the policy answers a batch of prompts, and what learning needs is read off in one pass.

    tokens      p  p  p  a  a  e  .        p: prompt, a: answer, e: its end token, .: padding
    mask           .  .  x  x  x  .        column t of T - 1: tokens[:, t + 1] is the policy's choice

All numbers of a choice (log-probability, value, reward, advantage) stand in column t, that of the state in which token
t + 1 was chosen. A token of the prompt is nobody's choice; the end token is one.
"""

from typing import NamedTuple

import torch

from part_3.generate import generate
from part_6.collator import pad


class Rollout(NamedTuple):
    """tokens, positions: (B, T) int64, padded on the right, position -1 for padding; mask: (B, T - 1) bool, the choices;
    ended: (B,) bool, whether an end token came."""

    tokens: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    ended: torch.Tensor

    def to(self, device):
        """The same on a device."""
        return Rollout(*(part.to(device) for part in self))

    def select(self, rows):
        """Some rows only. rows: indices, or a bool for each row."""
        return Rollout(*(part[rows] for part in self))

    def answers(self):
        """The ids of each answer, its end token with it: a list of B lists."""
        return [row[1:][mask].tolist() for row, mask in zip(self.tokens, self.mask)]


def collect(policy, prompts, n_new, stop_ids, temperature=1.0, top_k=None, top_p=None, generator=None, n_samples=1):
    """Sample answers to each prompt, all in one batch with a cache (lesson 3.4): a Rollout on the policy's device.

    policy: a ModernGPT; prompts: B lists of ids; n_new: most tokens of an answer; stop_ids: tokens that end an answer, of
    which only the first is its proper end; generator: torch.Generator on the policy's device; n_samples: answers to each
    prompt, side by side.
    """
    answers = generate(policy, prompts, n_new, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator,
                       stop_ids=stop_ids, n_samples=n_samples)
    prompts = [prompt for prompt in prompts for _ in range(n_samples)]
    return as_rollout(prompts, [answer.tolist() for answer in answers], stop_ids[0]).to(policy.head.weight.device)


def as_rollout(prompts, answers, end):
    """A Rollout on the CPU. prompts, answers: B lists of ids, none empty; end: the end token's id."""
    batch = pad([(prompt + answer, [0] * len(prompt) + [1] * len(answer)) for prompt, answer in zip(prompts, answers)])
    ended = torch.tensor([answer[-1] == end for answer in answers])
    return Rollout(batch.inputs, batch.positions, batch.targets[:, 1:] == 1, ended)
