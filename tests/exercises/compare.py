"""How a check of an exercise compares an answer, and says in a few lines what is wrong with it."""

import pytest
import torch


def as_numbers(value):
    """A number, tensor, array or nested list as a tensor of fp64; None where it is nothing of the kind."""
    try:
        return torch.as_tensor(value).detach().double()
    except (TypeError, ValueError, RuntimeError):
        return None


def same(one, other, tolerance):
    """Whether two answers are equal: numbers of one shape up to `tolerance` (of 1 and of their size), all else exactly."""
    numbers, others = as_numbers(one), as_numbers(other)
    if numbers is None or others is None:
        return numbers is others and one == other
    return numbers.shape == others.shape and torch.allclose(numbers, others, rtol=tolerance, atol=tolerance)


def check(asked, got, right, mistakes=None, tolerance=1e-5):
    """Fail unless `got` is `right`.

    asked: the call in words, "training_seconds(params=10, tokens=5, ...)". got, right: numbers, tensors, nested lists, or
    anything that has an ==. mistakes: dict of what a reader may have done wrong to what then comes out; the message names
    the one that fits.
    """
    mistakes = mistakes or {}
    for mistake, wrong in mistakes.items():
        assert not same(wrong, right, tolerance), f"this check cannot tell: {mistake}"
    if same(got, right, tolerance):
        return
    numbers, truth = as_numbers(got), as_numbers(right)
    shapes = ""
    if numbers is not None and truth is not None and numbers.shape != truth.shape:
        shapes = f"\nThe shape is {tuple(numbers.shape)}, not {tuple(truth.shape)}."
    why = "".join(f"\nIt looks as if {mistake}." for mistake, wrong in mistakes.items() if same(got, wrong, tolerance))
    pytest.fail(f"{asked} is\n{got}\nand should be\n{right}{shapes}{why}", pytrace=False)
