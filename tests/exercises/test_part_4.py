"""Checks of the exercises of Part 4: one for each function, named for it."""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from part_4.bpe_training import train_bpe
from tests.exercises.compare import check


def test_one_merge(answers):
    # (2, 3) occurs 4 + 1 times, (1, 2) 4, (1, 1) 3; were a chunk counted once, (1, 1) would have most.
    chunks = {(1, 2, 3): 4, (1, 1, 1, 1, 4): 1, (2, 3, 5): 1}
    pair, merged = answers.one_merge(dict(chunks), 9)
    check(f"the pair of one_merge({chunks}, new=9)", pair, (2, 3),
          {"a pair counts once a chunk, however often the chunk occurs": (1, 1)})
    check(f"the chunks of one_merge({chunks}, new=9)", merged, {(1, 9): 4, (1, 1, 1, 1, 4): 1, (9, 5): 1},
          {"a chunk without the pair is lost": {(1, 9): 4, (9, 5): 1}})
    pair, merged = answers.one_merge({(7, 7, 7): 2, (7, 7, 7, 7): 1}, 9)  # three sevens: the first two are merged
    check("the chunks of one_merge({(7, 7, 7): 2, (7, 7, 7, 7): 1}, new=9)", merged, {(9, 7): 2, (9, 9): 1},
          {"a token is used in two merges": {(9, 9): 2, (9, 9, 9): 1},
           "merging goes from right to left": {(7, 9): 2, (9, 9): 1}})
    # The lesson's own training, on a text of bytes
    text = {b"banana": 3, b"bandana": 2, b"nab": 1}
    [first, *_], _ = train_bpe(text, 257)
    pair, _ = answers.one_merge({tuple(chunk): n for chunk, n in text.items()}, 256)
    check('the pair of one_merge on the bytes of "banana" x 3, "bandana" x 2, "nab"', bytes(pair), b"".join(first))


def test_accumulate(answers):
    torch.manual_seed(0)
    model = nn.Linear(4, 3, bias=False)
    pieces = [(torch.randn(4, 4), torch.tensor(targets))
              for targets in ([0, 1, 2, 1], [2, -100, -100, -100], [0, -100, 1, 1])]

    def gradient(loss):
        other = copy.deepcopy(model)
        loss(other).backward()
        return other.weight.grad

    def whole(model, **options):
        inputs, targets = (torch.cat(part) for part in zip(*pieces))
        return F.cross_entropy(model(inputs), targets, **options)

    def means(model):
        return sum(F.cross_entropy(model(inputs), targets) for inputs, targets in pieces)

    answers.accumulate(model, pieces)
    assert model.weight.grad is not None, "accumulate leaves no gradient: is backward() called?"
    check("the gradient after accumulate on pieces of 4, 1 and 3 targets", model.weight.grad, gradient(whole), {
        "the mean of the pieces' means is taken": gradient(lambda model: means(model) / 3),
        "the pieces' means are added up": gradient(means),
        "the sum is not divided by the number of targets": gradient(lambda model: whole(model, reduction="sum")),
        "ignored targets are counted": gradient(lambda model: whole(model, reduction="sum") / 12),
        "gradients are cleared between the pieces": gradient(
            lambda model: F.cross_entropy(model(pieces[-1][0]), pieces[-1][1], reduction="sum") / 8)})


def test_learning_rate(answers):
    # lr 1, min_lr 0.1, 10 steps of warmup, 110 in all: at 60, halfway down, their mean; at 35, a quarter on, cos(pi/4)
    for step, right, mistakes in (
            (0, 0.1, {"the first update learns nothing, because its rate is 0": 0, "there is no warmup": 1}),
            (4, 0.5, {"the warmup is a step late": 0.4}), (9, 1, {"the warmup is a step late": 0.9}),
            (10, 1, {"the cosine is counted from step 0": 0.1 + 0.45 * (1 + math.cos(math.pi * 10 / 110))}),
            (35, 0.1 + 0.45 * (1 + math.cos(math.pi / 4)),
             {"the cosine is counted from step 0": 0.1 + 0.45 * (1 + math.cos(math.pi * 35 / 110))}),
            (60, 0.55, {"the cosine goes down to 0": 0.5,
                        "the cosine is as long as the whole run": 0.1 + 0.45 * (1 + math.cos(math.pi * 50 / 110))}),
            (110, 0.1, {"the cosine goes down to 0": 0})):
        check(f"learning_rate({step}, steps=110, lr=1, min_lr=0.1, warmup_steps=10)",
              answers.learning_rate(step, 110, 1.0, 0.1, 10), right, mistakes)
