import pytest
import torch

from part_2 import dataset, sampling
from part_2.bugs import BUGS
from part_2.demo_bugs import nucleus

SHIFT, TOP_P = BUGS
LOGITS = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).log()


def test_a_mistake_says_what_it_is_and_what_catches_it():
    lines = SHIFT.describe("2.5 nats", "0 nats").splitlines()
    assert lines[0].startswith("labels not shifted: ")
    assert [line.split()[0] for line in lines[1:]] == ["right", "wrong", "test"]
    assert "2.5 nats" in lines[1] and " 0 nats" in lines[2] and lines[3].endswith(SHIFT.test)


def test_unshifted_targets_are_the_inputs():
    tokens, starts = torch.tensor([5, 6, 7, 8, 9]), torch.tensor([0, 2])
    with SHIFT.installed():
        inputs, targets = dataset.windows_at(tokens, starts, 2)
        drawn = dataset.get_batch(tokens, 8, 3, torch.Generator().manual_seed(0))
    assert inputs.tolist() == targets.tolist() == [[5, 6], [7, 8]]
    assert torch.equal(*drawn)


def test_without_the_crossing_token_the_nucleus_is_too_small_or_empty():
    # In order of rank: 0.4, 0.7, 0.9, 1.0.
    with TOP_P.installed():
        kept = {p: sampling.apply_top_p(LOGITS[0], p).isfinite().nonzero().flatten().tolist() for p in (0.3, 0.5, 0.75, 1.0)}
    assert kept == {0.3: [], 0.5: [1], 0.75: [1, 3], 1.0: [0, 1, 2, 3]}


def test_the_nucleus_is_measured_with_and_without_the_mistake():
    rows = torch.cat((LOGITS, torch.tensor([[0.7, 0.1, 0.1, 0.1]]).log()))  # 0.4 + 0.3 reach 0.5, and 0.7 does alone
    assert nucleus(rows, 0.5) == pytest.approx((0.7, 0.0))
    with TOP_P.installed():
        assert nucleus(rows, 0.5) == pytest.approx((0.2, 0.5))  # 0.4 of the one and nothing of the other
