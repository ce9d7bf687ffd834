"""Lesson 6.2 - the collator: conversations of different lengths as one batch, with the loss on the answers alone.

    tokens     <|user|> Sort:  b   a  <|end|> <|assistant|>  a    b  <|end|>
    targets        -     -     -   -     -          a        b  <|end|>  -         - is IGNORE: no loss

The target of a place is the token after it, as in lesson 2.2; the last token has none and is no input. The model learns to
answer, and not to ask. `pad` gives every conversation a row; `pack` puts several into one row, where none sees another
(`segments`) and each begins at position 0: the same loss from fewer places that hold nothing.
"""

from typing import NamedTuple

import torch

IGNORE = -100  # targets without a loss, as in torch's cross_entropy
PADDING = -1  # position and segment of a place that holds nothing


class Batch(NamedTuple):
    """inputs, targets, positions, segments: each (B, T) int64."""

    inputs: torch.Tensor
    targets: torch.Tensor
    positions: torch.Tensor
    segments: torch.Tensor

    def to(self, device):
        """The same on a device."""
        return Batch(*(part.to(device) for part in self))


def shift(ids, learnt):
    """Inputs and targets of one conversation: the target is the next token where that is to be learnt, else IGNORE.

    ids: list of int; learnt: list of bool, as from `encode_chat`. Returns two lists, one shorter. ValueError when nothing
    would be learnt: the mean over no target is no number.
    """
    targets = [id if is_learnt else IGNORE for id, is_learnt in zip(ids[1:], learnt[1:])]
    if not any(learnt[1:]):
        raise ValueError(f"no token of these {len(ids)} is to be learnt: is there no answer?")
    return ids[:-1], targets


def first_fit(lengths, capacity):
    """Rows of at most `capacity` places for examples of these lengths: a list of lists of indices.

    The longest first, each into the first row that has room (Johnson 1974, "first-fit decreasing"). ValueError for one that
    is longer than a row.
    """
    rows, room = [], []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if lengths[index] > capacity:
            raise ValueError(f"example {index} has {lengths[index]} tokens; a row has {capacity}")
        row = next((row for row, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def collate(examples, rows, width):
    """A Batch with the examples of each row one behind the other, then padding.

    examples: pairs (inputs, targets) as from `shift`; rows: lists of indices into them; width: T.
    """
    batch = Batch(torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), IGNORE),
                  *(torch.full((len(rows), width), PADDING) for _ in range(2)))
    for row, indices in enumerate(rows):
        start = 0
        for segment, index in enumerate(indices):
            inputs, targets = examples[index]
            place = slice(start, start := start + len(inputs))
            batch.inputs[row, place], batch.targets[row, place] = torch.as_tensor(inputs), torch.as_tensor(targets)
            batch.positions[row, place], batch.segments[row, place] = torch.arange(len(inputs)), segment
    return batch


def pad(examples):
    """A Batch with one example a row, as wide as the longest."""
    return collate(examples, [[index] for index in range(len(examples))], max(len(inputs) for inputs, _ in examples))


def pack(examples, block_size):
    """A Batch of rows of `block_size`, each with as many examples as fit. ValueError for one that is too long."""
    return collate(examples, first_fit([len(inputs) for inputs, _ in examples], block_size), block_size)
