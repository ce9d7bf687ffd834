"""Lesson 2.6 - the mistakes of this part: each a wrong version of one function, put in its place by bug_museum.py.

    labels not shifted              the target of every position is its own input                      (lesson 2.2)
    top-p drops the crossing token  the smallest set that reaches p, without the token that reaches it  (lesson 2.5)
"""

import torch

from part_2.bug_museum import Bug


def labels_not_shifted(right):
    """Inputs and targets are the same T tokens."""
    def windows_at(tokens, starts, block_size):
        inputs, _ = right(tokens, starts, block_size)
        return inputs, inputs
    return windows_at


def crossing_token_dropped(right):
    """The token's own probability counts as spent before it is its turn."""
    def apply_top_p(logits, p):
        if p >= 1:
            return logits
        ranked, order = logits.sort(dim=-1, descending=True, stable=True)
        ranked = ranked.masked_fill(ranked.softmax(dim=-1).cumsum(dim=-1) > p, float("-inf"))
        return torch.empty_like(logits).scatter(-1, order, ranked)
    return apply_top_p


BUGS = (
    Bug("labels not shifted", "the loss falls to zero, far below what is possible, and the model repeats what it has read",
        "part_2.dataset:windows_at", labels_not_shifted,
        "tests/part_2/test_dataset.py::test_targets_are_the_inputs_shifted_by_one"),
    Bug("top-p drops the crossing token", "less than p is kept, and nothing at all where one token alone is above p",
        "part_2.sampling:apply_top_p", crossing_token_dropped,
        "tests/part_2/test_sampling.py::test_top_p_keeps_the_token_that_crosses_the_threshold"),
)
