"""Lesson 2.2 - batches: the target of every position is the token that follows it.

    tokens    t0 t1 t2 t3 t4 ...
    inputs    t0 t1 t2 t3            one window of T = 4 is T predictions,
    targets   t1 t2 t3 t4            each from everything before it
"""

import math

import torch

from part_0.cli import InputError


def split_tokens(tokens, block_size, val_fraction=0.1):
    """The first part for training, the last `val_fraction` for validation; neighbours in the text stay together.

    tokens: (N,). InputError when either part is too short for one window of `block_size` inputs and their targets.
    """
    n_train = len(tokens) - int(len(tokens) * val_fraction)
    train, val = tokens[:n_train], tokens[n_train:]
    shortest = min(len(train), len(val))
    if shortest < block_size + 1:
        needed = math.ceil((block_size + 1) / min(val_fraction, 1 - val_fraction))
        raise InputError(f"the text has {len(tokens)} tokens; --block_size {block_size} with a validation part of "
                         f"{val_fraction:.0%} needs at least {needed}: give more text or a smaller --block_size")
    return train, val


def n_windows(tokens, block_size):
    """How many different windows there are: the last start still leaves a target for the last input."""
    return len(tokens) - block_size


def windows_at(tokens, starts, block_size):
    """The windows that begin at `starts`.

    tokens: (N,) integers of any width; starts: (B,) int64. Returns inputs and targets, each (B, T) int64.
    """
    windows = tokens[starts[:, None] + torch.arange(block_size + 1)].long()  # (B, T+1), one gather
    return windows[:, :-1], windows[:, 1:]


def get_batch(tokens, batch_size, block_size, generator):
    """A batch of windows drawn uniformly, with replacement, from all of them.

    generator: torch.Generator, the only source of chance. Returns inputs and targets, each (B, T) int64.
    """
    starts = torch.randint(n_windows(tokens, block_size), (batch_size,), generator=generator)
    return windows_at(tokens, starts, block_size)
