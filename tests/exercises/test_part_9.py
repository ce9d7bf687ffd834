"""Checks of the exercises of Part 9: one for each function, named for it."""

import itertools
import math

import torch

from part_9.group_advantage import group_advantages
from tests.exercises.compare import check


def test_group_advantages(answers):
    # Rewards 3 1 1 3 and 0 0 0 4: means 2 and 1, mean squares 1 and 3. The last group is alike.
    rewards = torch.tensor([3.0, 1, 1, 3, 0, 0, 0, 4, 5, 5, 5, 5])
    groups = rewards.view(3, 4)
    few, many = -1 / (math.sqrt(3) + 1e-4), 3 / (math.sqrt(3) + 1e-4)
    near = 1 / 1.0001
    centred = groups - groups.mean(1, keepdim=True)
    check("group_advantages([3, 1, 1, 3, 0, 0, 0, 4, 5, 5, 5, 5], G=4)", answers.group_advantages(rewards, 4),
          [near, -near, -near, near, few, few, few, many, 0, 0, 0, 0],
          {"the standard deviation is over G - 1": (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten(),
           "nothing is divided by the spread": centred.flatten(), "it is divided by the variance":
           (centred / (groups.var(1, keepdim=True, correction=0) + 1e-4)).flatten(),
           "mean and spread are those of the batch": (rewards - rewards.mean()) / (rewards.std(correction=0) + 1e-4),
           "answers G apart are taken for a group": (groups.view(4, 3) - groups.view(4, 3).mean(0)).flatten()
           / (groups.view(4, 3).std(0, correction=0) + 1e-4).repeat(4)})
    torch.manual_seed(0)
    rewards = torch.randn(24)
    for G in (2, 8):
        check(f"group_advantages of 24 rewards, G={G}", answers.group_advantages(rewards, G), group_advantages(rewards, G))


def test_k3(answers):
    # d = ln 2, 0, -ln 2: 1/2 - 1 + ln 2, 0 and 2 - 1 - ln 2
    new, ref = torch.tensor([0.5, 0.3, 0.1]).log(), torch.tensor([0.25, 0.3, 0.2]).log()
    half = math.log(2)
    check("k3(log [0.5, 0.3, 0.1], log [0.25, 0.3, 0.2])", answers.k3(new, ref), [half - 0.5, 0, 1 - half],
          {"policy and reference stand in each other's place": [1 - half, 0, half - 0.5], "it is k1": [half, 0, -half],
           "it is k2": [half**2 / 2, 0, half**2 / 2], "the 1 is missing": [half + 0.5, 1, 2 - half]})
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(6, dtype=torch.float64).log_softmax(0)
    new = logits.log_softmax(0)
    drawn = new.detach().exp()  # every token, as often as the policy draws it
    mean = (drawn * answers.k3(new, ref)).sum()
    check("the mean of k3 over all tokens of a vocabulary of 6", mean,
          torch.nn.functional.kl_div(ref, new.detach(), log_target=True, reduction="sum"))
    check("the mean of its gradient, that of KL(reference || policy), with respect to the logits",
          torch.autograd.grad(mean, logits)[0], drawn - ref.exp())


def test_pass_at_k(answers):
    # Of 4 answers 2 are right: of the 6 pairs one is wrong altogether.
    check("pass_at_k(n=4, c=2, k=2)", answers.pass_at_k(4, 2, 2), 5 / 6,
          {"answers are drawn with replacement": 3 / 4, "it is the chance that all are right, or that none is": 1 / 6,
           "it is the share of right answers": 1 / 2})
    for n, c, k in ((4, 2, 1), (5, 0, 3), (5, 4, 2), (6, 6, 1), (7, 2, 3), (8, 1, 8)):
        right = [number < c for number in range(n)]
        ways = [any(chosen) for chosen in itertools.combinations(right, k)]
        check(f"pass_at_k({n=}, {c=}, {k=})", answers.pass_at_k(n, c, k), sum(ways) / len(ways))
