"""Reference answers to the exercises of Part 6."""

from collections import Counter

import torch


def inputs_and_targets(turns, role_ids, end):
    """The row first, with what is learnt beside it; then both are shifted by one."""
    ids, learnt = [], []
    for role, text in turns:
        ids += [role_ids[role], *text, end]
        learnt += [False, *[role == "assistant"] * (len(text) + 1)]
    return ids[:-1], [token if is_learnt else -100 for token, is_learnt in zip(ids[1:], learnt[1:])]


def packed_row(lengths):
    """Two tokens of one conversation have one number, and who may look is decided by that and by the order."""
    positions = torch.cat([torch.arange(length) for length in lengths])
    segments = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return positions, (segments[:, None] == segments) & (positions <= positions[:, None])


def token_f1(answer, reference):
    """2 P R / (P + R) is twice the words in common over the words of both."""
    answer, reference = Counter(answer.lower().split()), Counter(reference.lower().split())
    return 2 * (answer & reference).total() / (answer.total() + reference.total())
