"""Checks of the exercises of Part 0: one for each function, named for it."""

import torch

from part_0.roofline import attainable
from tests.exercises.compare import check


def test_training_seconds(answers):
    # 6 x 10^6 x 3 x 10^6 = 1.8e13 FLOP; at half of 2e11 FLOP/s that is 180 s
    check("training_seconds(params=1e6, tokens=3e6, peak=2e11, mfu=0.5)", answers.training_seconds(1e6, 3e6, 2e11, 0.5), 180,
          {"only the forward pass is counted": 60, "only the backward pass is counted": 120,
           "the machine's peak was taken for what is reached": 90, "the time is multiplied by the MFU": 45})
    # GPT-3: 3,640 petaflop/s-days as published (Brown et al. 2020, table D.1), a third of a percent less than the rule
    check("training_seconds(params=175e9, tokens=300e9, peak=1e15, mfu=1), in days",
          answers.training_seconds(175e9, 300e9, 1e15, 1) / 86400, 3640, tolerance=0.003)


def test_matmul_gradients(answers):
    torch.manual_seed(0)
    x, weight, grad = torch.randn(5, 3, requires_grad=True), torch.randn(3, 4, requires_grad=True), torch.randn(5, 4)
    (x @ weight).backward(grad)
    of_x, of_weight = answers.matmul_gradients(x.detach(), weight.detach(), grad)
    check("the gradient of x, for x (5, 3), weight (3, 4)", of_x, x.grad)
    check("the gradient of weight, for x (5, 3), weight (3, 4)", of_weight, weight.grad)


def test_writing_speed(answers):
    # A million weights of 2 bytes at 1e9 bytes/s are read 500 times a second. At 1e10 FLOP/s, 5,000 tokens can be computed.
    for texts, right in ((1, 500), (4, 2000), (10, 5000), (64, 5000)):
        roof = attainable(2 * texts / 2, 1e10, 1e9) / 2e6  # 2 FLOPs a text for the 2 bytes of each weight
        assert roof == right
        check(f"writing_speed(params=1e6, bytes_each=2, texts={texts}, peak=1e10, bandwidth=1e9)",
              answers.writing_speed(1e6, 2, texts, 1e10, 1e9), right,
              {"the bytes of a weight are left out": 1000, "the memory is left out": 5000} if texts == 1 else
              {"the weights are read again for each text": 500} if texts < 64 else
              {"arithmetic is left out": 32000, "the peak is divided by the texts": 5000 / 64}, tolerance=1e-6)
