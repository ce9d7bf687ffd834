import pytest
import torch

from part_0.cli import InputError
from part_2.dataset import get_batch, n_windows, split_tokens, windows_at


def test_targets_are_the_inputs_shifted_by_one():
    tokens = torch.tensor([5, 6, 7, 8, 9], dtype=torch.uint8)
    inputs, targets = windows_at(tokens, torch.tensor([0, 2]), 2)
    assert inputs.tolist() == [[5, 6], [7, 8]] and targets.tolist() == [[6, 7], [8, 9]]
    assert inputs.dtype == targets.dtype == torch.int64


def test_every_window_is_reachable_including_the_last_and_none_beyond():
    tokens = torch.arange(10)
    inputs, targets = get_batch(tokens, 2000, 4, torch.Generator().manual_seed(0))
    assert set(inputs[:, 0].tolist()) == set(range(6)) and n_windows(tokens, 4) == 6
    assert targets.max() == 9 and torch.equal(inputs[:, 1:], targets[:, :-1])


def test_starts_are_uniform():
    tokens, draws = torch.arange(25), 20_000
    starts = get_batch(tokens, draws, 5, torch.Generator().manual_seed(1))[0][:, 0]
    counts = torch.bincount(starts, minlength=20).double()
    chi_squared = ((counts - draws / 20).square() / (draws / 20)).sum().item()
    assert chi_squared < 43.8  # 19 degrees of freedom: exceeded once in 1000 seeds


def test_a_text_of_exactly_one_window_works():
    inputs, targets = get_batch(torch.arange(4), 2, 3, torch.Generator().manual_seed(0))
    assert inputs.tolist() == [[0, 1, 2]] * 2 and targets.tolist() == [[1, 2, 3]] * 2


def test_the_generator_is_the_only_source_of_chance():
    tokens = torch.arange(1000)
    first = get_batch(tokens, 4, 8, torch.Generator().manual_seed(3))[0]
    torch.manual_seed(99)
    assert torch.equal(first, get_batch(tokens, 4, 8, torch.Generator().manual_seed(3))[0])
    assert not torch.equal(first, get_batch(tokens, 4, 8, torch.Generator().manual_seed(4))[0])


def test_split_keeps_order_and_loses_nothing():
    train, val = split_tokens(torch.arange(105), block_size=4)
    assert train.tolist() == list(range(95)) and val.tolist() == list(range(95, 105))


def test_a_text_too_short_for_the_block_size_is_refused_with_what_is_needed():
    split_tokens(torch.arange(50), block_size=4)  # 5 validation tokens: 4 inputs and their targets
    with pytest.raises(InputError, match="49 tokens.*block_size 4.*at least 50"):
        split_tokens(torch.arange(49), block_size=4)
    with pytest.raises(InputError, match="30 tokens.*block_size 4.*at least 5[01]"):  # here the training part is short
        split_tokens(torch.arange(30), block_size=4, val_fraction=0.9)
