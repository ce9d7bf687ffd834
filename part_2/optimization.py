"""Lesson 2.4 - what the optimizer is told: which weights decay, and how large a step is at each moment.

Weight decay pulls a matrix towards zero; a norm's scale belongs near one and a rare token's embedding, which most steps
do not touch, would fade away: neither decays. The learning rate warms up linearly while Adam's averages are still young,
then follows half a cosine down to a floor (Loshchilov & Hutter 2017, "SGDR", equation 5, without restarts).
"""

import math

from torch import nn


def parameter_groups(model, weight_decay):
    """Two optimizer groups: the linear layers' matrices decay; norms, biases and embeddings (tied ones too) do not.

    Returns a list of two dicts with the keys "params" and "weight_decay"; every weight is in exactly one.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    decayed, kept = [], []
    for parameter in model.parameters():
        (decayed if parameter.ndim >= 2 and id(parameter) not in embeddings else kept).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": kept, "weight_decay": 0.0}]


def warmup_cosine(step, steps, lr, min_lr, warmup_steps):
    """The learning rate of update number `step`, counted from 0.

    The first update takes lr / warmup_steps, update warmup_steps - 1 the full lr; from there half a cosine leads to min_lr
    at `steps`, and it stays there.
    """
    if step >= steps:
        return min_lr
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (steps - warmup_steps)
    return min_lr + 0.5 * (lr - min_lr) * (1 + math.cos(math.pi * progress))
