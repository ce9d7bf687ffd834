"""Lesson 4.3 - learning-rate schedules: plain functions of the step, with no state that a checkpoint would have to hold.

    all        warmup_steps updates from lr / warmup_steps up to lr
    cosine     then half a cosine down to min_lr                            (lesson 2.4; Loshchilov & Hutter 2017, "SGDR")
    linear     then a straight line down to min_lr
    wsd        then lr, and over the last fifth  min_lr + (lr - min_lr) (1 - sqrt(progress))
    constant   then lr

WSD is warmup, stable, decay (Hu et al. 2024, "MiniCPM", section 4). A cosine must know the length of the run from its first
step; the plateau need not, so a run could be prolonged, and a decay branched off from any of its checkpoints
(part_4/train.py resumes with the same flags alone). MiniCPM decays
exponentially; the shape here, 1 - sqrt, did best in Hägele et al. 2024 ("Scaling Laws and Compute-Optimal Training Beyond
Fixed Training Durations", section 3), with a fifth of the run as the length to start from.
"""

import math

from part_2.optimization import warmup_cosine


def linear(step, steps, lr, min_lr, warmup_steps):
    """The learning rate of update number `step`, counted from 0: warmup, then a straight line.

    The first update takes lr / warmup_steps, update warmup_steps - 1 the full lr; min_lr is reached at `steps` and kept.
    """
    if step >= steps:
        return min_lr
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    return lr - (lr - min_lr) * (step - warmup_steps) / (steps - warmup_steps)


def warmup_stable_decay(step, steps, lr, min_lr, warmup_steps, decay_fraction=0.2):
    """The learning rate of update number `step`, counted from 0: warmup, plateau, and the decay over the end of the run.

    decay_fraction: the decay's share of all steps; it never begins before the warmup has ended. min_lr is reached at
    `steps` and kept.
    """
    if step >= steps:
        return min_lr
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    decay_start = max(warmup_steps, steps - decay_fraction * steps)
    if step < decay_start:
        return lr
    return min_lr + (lr - min_lr) * (1 - math.sqrt((step - decay_start) / (steps - decay_start)))


def constant(step, steps, lr, min_lr, warmup_steps):
    """The learning rate of update number `step`, counted from 0: warmup, then lr for ever; steps and min_lr play no part."""
    return lr * min(1.0, (step + 1) / warmup_steps) if warmup_steps else lr


SCHEDULES = {"cosine": warmup_cosine, "linear": linear, "wsd": warmup_stable_decay, "constant": constant}
