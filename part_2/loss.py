"""Lesson 2.3 - cross-entropy: the surprise, in nats, at what came next.

    loss = -log softmax(z)[y] = logsumexp(z) - z[y]            logsumexp(z) = m + log sum exp(z - m),  m = max z

A model that knows nothing gives each of V tokens 1/V and loses ln V nats a token; this is where every run must start.
"""

import torch


def log_sum_exp(logits):
    """log sum exp over the last axis, finite for any finite logits: with the maximum taken off nothing overflows."""
    # The shift cancels in the result, so no gradient needs to pass through the maximum.
    highest = logits.detach().amax(dim=-1, keepdim=True)
    return (logits - highest).exp().sum(dim=-1).log() + highest.squeeze(-1)


def token_losses(logits, targets):
    """The loss of each token alone, in nats.

    logits: (..., V); targets: (...) int64, in 0 ... V-1. Returns (...), fp64 for fp64 logits, else fp32.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return log_sum_exp(logits) - logits.gather(-1, targets[..., None]).squeeze(-1)


def cross_entropy(logits, targets, ignore_index=-100):
    """The mean loss in nats over all tokens whose target is not `ignore_index`.

    logits: (..., V); targets: (...) int64. Returns a scalar in the precision of `token_losses`. ValueError when every target
    is ignored: the mean of nothing is no number.
    """
    kept = targets != ignore_index
    if not kept.any():
        raise ValueError(f"every target is ignore_index {ignore_index}: there is nothing to average")
    losses = token_losses(logits, targets.where(kept, 0))
    return losses.where(kept, 0.0).sum() / kept.sum()  # not losses * kept: infinity times 0 is no number
