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
    """Whether two tensors of fp64 have one shape and the same numbers, up to `tolerance` (relative to 1 and to `other`)."""
    return one.shape == other.shape and torch.allclose(one, other, rtol=tolerance, atol=tolerance)


def check(asked, got, right, mistakes=None, tolerance=1e-5):
    """Fail unless `got` is `right`.

    asked: the call in words, "training_seconds(params=10, tokens=5, ...)". got, right: numbers, tensors or nested lists.
    mistakes: dict of what a reader may have done wrong to what then comes out; the message names the one that fits.
    """
    numbers, truth = as_numbers(got), as_numbers(right)
    for mistake, wrong in (mistakes or {}).items():
        assert not same(as_numbers(wrong), truth, tolerance), f"this check cannot tell: {mistake}"
    if numbers is None:
        pytest.fail(f"{asked} returns {got!r}: no number and no tensor", pytrace=False)
    if numbers.shape != truth.shape:
        pytest.fail(f"{asked} has the shape {tuple(numbers.shape)}, not {tuple(truth.shape)}", pytrace=False)
    if not same(numbers, truth, tolerance):
        fits = [mistake for mistake, wrong in (mistakes or {}).items() if same(numbers, as_numbers(wrong), tolerance)]
        pytest.fail(f"{asked} is\n{got}\nand should be\n{right}" + "".join(f"\nIt looks as if {why}." for why in fits),
                    pytrace=False)
