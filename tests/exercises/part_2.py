"""Exercises of Part 2. Replace each `raise`; `python3 -m pytest tests/exercises -k part_2` says whether you are right."""


def every_window(tokens, block_size):
    """All the windows that a text has, as inputs and targets.

    tokens: (N,) int64 tensor; block_size: T. Returns inputs and targets, each (number of windows, T): row s is the window
    that starts at token s. Hint: lesson 2.2; the last input of the last window still needs its target.
    """
    raise NotImplementedError("solve me")


def cross_entropy(logits, targets):
    """The mean loss in nats, for logits of any size.

    logits: (N, V) tensor of fp32; targets: (N,) int64, each below V. Returns a scalar, finite for logits of thousands too.
    Without torch's own softmax, logsumexp and losses. Hint: lesson 2.3; take the row's maximum off, and add it again.
    """
    raise NotImplementedError("solve me")


def nucleus(probabilities, p):
    """Which tokens does top-p leave possible?

    probabilities: (V,) tensor that sums to 1, in no order; p: above 0, below 1. Returns bool (V,): True for the smallest set
    of most probable tokens whose sum is p or more. Hint: lesson 2.5; the token that crosses p belongs to them.
    """
    raise NotImplementedError("solve me")
