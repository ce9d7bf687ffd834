"""Lesson 7.4 - statistics for a reward model: does it rank as the truth does, is it calibrated, and what does it follow?

    Spearman's rank correlation = Pearson's of the ranks, equal values sharing their mean rank
    best of n:  E[u] = sum_i C(i - 1, n - 1) / C(N, n) u_(i)    u_(i): utility of the sample with the i-th lowest reward of N
    KL(best of n || policy) = ln n - (n - 1) / n                   (Stiennon et al. 2020; exact where no reward comes twice)
"""

import math

import torch


def ranks(values):
    """Ranks from 1 of (N,) numbers, equal ones sharing the mean of theirs: (N,) fp64."""
    _, place, counts = torch.as_tensor(values, dtype=torch.float64).unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place]


def correlation(x, y):
    """Pearson's correlation of two (N,) tensors, a float; nan where one of them does not vary."""
    x, y = (torch.as_tensor(values, dtype=torch.float64) for values in (x, y))
    if x.min() == x.max() or y.min() == y.max():
        return math.nan  # the mean of equal numbers need not be exactly that number, nor the formula 0 / 0
    x, y = x - x.mean(), y - y.mean()
    return (x @ y / (x.norm() * y.norm())).item()


def rank_correlation(x, y):
    """Spearman's correlation of two (N,) tensors, a float."""
    return correlation(ranks(x), ranks(y))


def correlation_within(x, y, groups):
    """The correlation of x and y where `groups` is held fixed: of what is left of each after its group's mean is taken off.

    x, y, groups: (N,); equal numbers of groups are one group. A float.
    """
    x, y = (torch.as_tensor(values, dtype=torch.float64).clone() for values in (x, y))
    for group in torch.as_tensor(groups).unique():
        own = torch.as_tensor(groups) == group
        x[own] -= x[own].mean()
        y[own] -= y[own].mean()
    return correlation(x, y)


def calibration(probabilities, outcomes, n_bins=10):
    """Predicted against observed: a list of (mean probability, share of outcomes, number) for each bin with any in it.

    probabilities: (N,) in [0, 1]; outcomes: (N,) of 0 and 1; the bins are equally wide.
    """
    bins = (probabilities * n_bins).long().clamp(max=n_bins - 1)
    return [(probabilities[bins == b].mean().item(), outcomes[bins == b].float().mean().item(), int((bins == b).sum()))
            for b in bins.unique()]


def share_above(first, second):
    """The share of pairs in which `first` is greater, equal ones counting half: a float. first, second: (N,)."""
    return ((first > second).double() + 0.5 * (first == second).double()).mean().item()


def best_of_n(rewards, utilities, n):
    """The expected utility of the sample with the highest reward among n of N, for each prompt: (P,) fp64.

    rewards, utilities: (P, N), n <= N. All subsets of n samples count, by the formula above; equal rewards share theirs.
    """
    N = rewards.shape[1]
    if not 1 <= n <= N:
        raise ValueError(f"n must be between 1 and the {N} samples, not {n}")
    weights = torch.tensor([math.comb(i - 1, n - 1) / math.comb(N, n) for i in range(1, N + 1)], dtype=torch.float64)
    expected = []
    for reward, utility in zip(rewards, utilities.double()):
        order = reward.argsort()
        _, place, counts = reward[order].unique(return_inverse=True, return_counts=True)
        shared = torch.zeros(len(counts), dtype=torch.float64).index_add_(0, place, weights) / counts
        expected.append((shared[place] * utility[order]).sum())
    return torch.stack(expected)


def best_of_n_kl(n):
    """The divergence of best-of-n from the policy in nats."""
    return math.log(n) - (n - 1) / n
