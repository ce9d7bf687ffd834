"""Lesson 8.3 - PPO's objective: make what went better than expected more probable, but not by more than a step can trust.

    rho_t = pi_new(a_t | s_t) / pi_old(a_t | s_t)
    L_policy = - mean_t min(rho_t A_t, clip(rho_t, 1 - eps, 1 + eps) A_t)
    L_value  = 1/2 mean_t max((V - R)^2, (V_old + clip(V - V_old, -eps_v, eps_v) - R)^2)

(Schulman et al. 2017, equation 7; the value's clipping as in their code.) Where the ratio has left the interval in the
direction that the advantage asks for, the gradient is zero: the step has done enough. Means are over the tokens that the
policy chose: neither the prompt's nor what follows the end token, but the end token itself.
"""

import torch

from part_8.gae import masked_mean


def clipped_surrogate(new, old, advantages, clip=0.2, clip_high=None):
    """The loss of each token, and whether clipping has set its gradient to zero: (...) fp32 and bool.

    new, old: (...) log-probabilities, of which the new ones are learnt; advantages: (...); clip, clip_high: eps below and
    above 1, the same if clip_high is None.
    """
    ratio = (new - old).exp()
    bounded = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    clipped = bounded * advantages < ratio * advantages
    return -torch.minimum(ratio * advantages, bounded * advantages), clipped.detach()


def policy_loss(new, old, advantages, mask, clip=0.2, clip_high=None):
    """The mean of `clipped_surrogate` over the tokens of `mask`, and the share of them that is clipped: two scalars. All
    (B, T), mask bool."""
    # Masked before and not only after: a gradient of 0 times an infinite derivative would be no number.
    new, old, advantages = (torch.where(mask, x, 0.0) for x in (new, old, advantages))
    losses, clipped = clipped_surrogate(new, old, advantages, clip, clip_high)
    return masked_mean(losses, mask), masked_mean(clipped.float(), mask)


def value_loss(values, old_values, returns, mask, clip=None):
    """Half the mean squared error of the values, a scalar; with `clip`, the larger one of it and that of values that have
    moved by at most so much from `old_values`. All (B, T), mask bool."""
    values, old_values, returns = (torch.where(mask, x, 0.0) for x in (values, old_values, returns))
    errors = (values - returns) ** 2
    if clip is not None:
        bounded = old_values + (values - old_values).clamp(-clip, clip)
        errors = torch.maximum(errors, (bounded - returns) ** 2)
    return 0.5 * masked_mean(errors, mask)
