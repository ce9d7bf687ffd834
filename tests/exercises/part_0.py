"""Exercises of Part 0. Replace each `raise`; `python3 -m pytest tests/exercises -k part_0` says whether you are right."""


def training_seconds(params, tokens, peak, mfu):
    """How long does pretraining take?

    params: N; tokens: D; peak: the machine's fastest matrix product, in FLOP/s; mfu: the share of it that the training
    reaches, above 0 and at most 1. Returns seconds. Hint: the 6ND rule of lesson 0.1, MFU of lesson 0.2.
    """
    raise NotImplementedError("solve me")


def matmul_gradients(x, weight, grad):
    """The two products behind "backward costs twice as much as forward": the gradients of y = x @ weight.

    x: (T, C); weight: (C, V); grad: (T, V), the gradient of the loss with respect to y. Returns the gradient with respect
    to x, (T, C), and that with respect to weight, (C, V). Without autograd. Hint: lesson 0.1; the shapes leave one way.
    """
    raise NotImplementedError("solve me")


def writing_speed(params, bytes_each, texts, peak, bandwidth):
    """How many tokens a second can a model write at most, if it writes `texts` texts at once?

    params: weights, each read from memory once for one new token of every text; bytes_each: bytes of a weight; peak in
    FLOP/s; bandwidth in bytes/s. Returns tokens per second, of all texts together. Count nothing but the weights.
    Hint: the roof of lesson 0.2, at 2 FLOPs a weight and token.
    """
    raise NotImplementedError("solve me")
