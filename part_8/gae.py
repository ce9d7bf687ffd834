"""Lesson 8.4 - generalised advantage estimation: how much better an action was than what was to be expected.

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)          A_t = delta_t + gamma lambda A_{t+1}          R_t = A_t + V(s_t)

(Schulman et al. 2016, equation 16.) After the last action V is 0. lambda = 1: A_t is the reward to go less V(s_t), without
bias and with much variance; lambda = 0: A_t = delta_t, which trusts V.
"""

import torch


def generalised_advantages(rewards, values, mask, gamma=1.0, lam=0.95):
    """Advantages and returns, each (B, T), 0 where `mask` is False.

    rewards, values: (B, T), at the place of an action its reward and V of the state it was chosen in; mask: (B, T) bool,
    the actions, in one run a row: what comes before and after has no part in it. Nothing has a gradient.
    """
    rewards, values = (torch.where(mask, x, 0.0) for x in (rewards.detach(), values.detach()))
    advantages, ahead, next_value = torch.zeros_like(rewards), 0.0, 0.0
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        ahead = torch.where(mask[:, t], delta + gamma * lam * ahead, 0.0)
        advantages[:, t], next_value = ahead, values[:, t]
    return advantages, advantages + values


def masked_mean(x, mask):
    """The mean of x where `mask` is True, a scalar; ValueError where it is nowhere."""
    if not mask.any():
        raise ValueError("there is no token to average over")
    return torch.where(mask, x, 0.0).sum() / mask.sum()


def whiten(x, mask, keep_mean=False):
    """x with standard deviation 1 and mean 0 over `mask`, or with its own mean; 0 elsewhere. Numbers that are all the same
    are left with no spread."""
    mean = masked_mean(x, mask)
    variance = masked_mean((x - mean) ** 2, mask)
    white = (x - mean) * torch.rsqrt(variance + 1e-8)
    return torch.where(mask, white + mean if keep_mean else white, 0.0)
