"""Lesson 8.5 - stability: what keeps a run from leaving the ground that its reward model knows.

    beta   <- beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)     n: answers of the batch  (Ziegler et al. 2019, 2.2)
    length <- 0.9 length where KL > target, 1.1 length where KL < target / 2
    score  <- score / spread of all scores so far

A coefficient that is fixed gives whatever divergence the reward buys; one that adapts holds the divergence. A long answer
has more places to drift, so length can be the lever, too.
"""

import math
from dataclasses import dataclass


def adapted_beta(beta, kl, target, horizon, n):
    """The coefficient of the KL penalty after `n` answers with mean divergence `kl`, in nats an answer: raised where that is
    above the target, lowered below it, by a factor of at most 1 +- 0.2 n / horizon."""
    return beta * (1 + max(-0.2, min(0.2, kl / target - 1)) * n / horizon)


def adapted_length(length, kl, target, shortest, longest):
    """The most tokens of the next answers: a tenth fewer where the divergence is above its target, a tenth more below half
    of it, a tenth being one token at least, within `shortest` and `longest`."""
    tenth = -(-length // 10)  # rounded up
    if kl > target:
        length -= tenth
    elif kl < target / 2:
        length += tenth
    return max(shortest, min(longest, length))


def approximate_kl(new, old):
    """Half the squared log ratio of each token, (...): to second order KL(pi_old || pi_new), never negative, and of little
    variance (Schulman 2020, "Approximating KL Divergence", k2)."""
    return 0.5 * (new - old) ** 2


def explained_variance(values, returns):
    """1 - Var(returns - values) / Var(returns), a float: 1 for a critic that knows, 0 for one that says the same of all,
    below 0 for one that is worse; nan where the returns do not vary. values, returns: (N,)."""
    variance = returns.var(correction=0)
    return (1 - (returns - values).var(correction=0) / variance).item() if variance > 0 else math.nan


@dataclass
class RunningSpread:
    """Mean and spread of all numbers so far, of which none is kept (Chan et al. 1983)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def add(self, x):
        """Take in a batch of numbers, a tensor with at least one."""
        x = x.double()
        n, mean, squares = x.numel(), x.mean().item(), ((x - x.mean()) ** 2).sum().item()
        difference, total = mean - self.mean, self.n + n
        self.squares += squares + difference**2 * self.n * n / total
        self.mean += difference * n / total
        self.n = total

    @property
    def std(self):
        """The standard deviation; 1 before there are numbers that differ."""
        return math.sqrt(self.squares / self.n) if self.squares > 0 else 1.0
