"""Reference answers to the exercises of Part 7."""

import math

import torch
import torch.nn.functional as F


def best_accuracy(utilities_a, utilities_b, temperature):
    """The better one is preferred with a probability that depends on the distance alone."""
    return ((utilities_a - utilities_b).abs() / temperature).sigmoid().mean()


def bradley_terry_loss(chosen, rejected, margin):
    """log(1 + exp(-x)) does not overflow where it is computed as softplus."""
    return F.softplus(-(chosen - rejected - margin)).mean()


def best_of_n(rewards, utilities, n):
    """The i-th lowest is the best where the n - 1 others are among the i - 1 below it."""
    N = len(rewards)
    weights = torch.tensor([math.comb(i - 1, n - 1) / math.comb(N, n) for i in range(1, N + 1)])
    return (weights * utilities[rewards.argsort()]).sum(), math.log(n) - (n - 1) / n
