"""Lesson 9.5 - pass@k: the chance that at least one of k answers is right.

    pass@k = 1 - C(n - c, k) / C(n, k)            n answers, c of them right                (Chen et al. 2021, equation 1)

pass@1 says how often the policy is right, pass@16 what it can do at all. Reinforcement learning may raise the first by
making the usual answer more usual, and lose the second: sharpening, not learning (Yue et al. 2025, "Does Reinforcement
Learning Really Incentivize Reasoning Capacity in LLMs Beyond the Base Model?").
"""

import math

import torch

from part_6.evaluation import answer
from part_6.tasks import verify


def pass_at_k(n, c, k):
    """The probability that of `k` answers, drawn from `n` of which `c` are right, one at least is right."""
    if not 1 <= k <= n or not 0 <= c <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= c <= n, not k {k}, n {n}, c {c}")
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def count_right(model, tokenizer, tasks, n, n_new=80, seed=0):
    """How many of `n` samples at temperature 1 are right and ended, for each task: a list of int."""
    answers = answer(model, tokenizer, [task.prompt for task in tasks for _ in range(n)], 1.0, n_new, seed=seed)
    right = torch.tensor([ended and verify(tasks[i // n], text) for i, (text, ended) in enumerate(answers)])
    return right.view(len(tasks), n).sum(1).tolist()
