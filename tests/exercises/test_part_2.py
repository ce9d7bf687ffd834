"""Checks of the exercises of Part 2: one for each function, named for it."""

import math

import torch
import torch.nn.functional as F

from tests.exercises.compare import check


def test_every_window(answers):
    tokens = torch.tensor([7, 1, 8, 2, 8])
    inputs, targets = answers.every_window(tokens, 3)
    check("the inputs of every_window([7, 1, 8, 2, 8], block_size=3)", inputs, [[7, 1, 8], [1, 8, 2]], {
        "one window too many is taken: its last input has no target": [[7, 1, 8], [1, 8, 2], [8, 2, 8]],
        "the last window is left out": [[7, 1, 8]]})
    check("the targets of every_window([7, 1, 8, 2, 8], block_size=3)", targets, [[1, 8, 2], [8, 2, 8]], {
        "the targets are the inputs, not shifted": [[7, 1, 8], [1, 8, 2]],
        "the last window is left out": [[1, 8, 2]]})


def test_cross_entropy(answers):
    check("cross_entropy of four equal logits", answers.cross_entropy(torch.zeros(3, 4), torch.tensor([0, 1, 3])),
          math.log(4), {"the logarithm is the binary one": 2, "losses are added up, not averaged": 3 * math.log(4)})
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 5) * 3, torch.randint(5, (6,))
    for scale in (1, 1000):  # exp(1000) overflows, and exp(-1000) is 0
        check(f"cross_entropy of random logits of about {3 * scale}", answers.cross_entropy(logits * scale, targets),
              F.cross_entropy(logits * scale, targets), {"the sign is wrong": -F.cross_entropy(logits * scale, targets)})


def test_nucleus(answers):
    probabilities = torch.tensor([0.125, 0.5, 0.125, 0.25])
    for p, right, dropped in ((0.6, [0, 1, 0, 1], [0, 1, 0, 0]), (0.3, [0, 1, 0, 0], [0, 0, 0, 0])):
        check(f"nucleus([0.125, 0.5, 0.125, 0.25], p={p})", answers.nucleus(probabilities, p), right, {
            "the token that crosses p is dropped": dropped,
            "the tokens are taken in the order of the vocabulary": [1, 1, 0, 0],
            "the answer is in the order of the ranks and not of the vocabulary": [1, 1, 0, 0] if p == 0.6 else [1, 0, 0, 0]})
    # 0.5 + 0.25 is 0.75 exactly: p is reached, and nothing more is needed
    check("nucleus([0.125, 0.5, 0.125, 0.25], p=0.75)", answers.nucleus(probabilities, 0.75), [0, 1, 0, 1],
          {"one more token is taken when p is reached exactly": [1, 1, 0, 1]})
