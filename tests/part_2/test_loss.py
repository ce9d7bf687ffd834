import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from part_2.gpt import GPT, GPTConfig
from part_2.loss import cross_entropy, log_sum_exp, token_losses


@pytest.mark.parametrize("ignore_index", [-100, 2, 300])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_equals_torch_s_loss_and_gradient(scale, ignore_index):
    torch.manual_seed(0)
    logits = torch.randn(4, 5, 7) * scale
    targets = torch.randint(7, (4, 5))
    targets[0, :3] = ignore_index
    mine, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = cross_entropy(mine, targets, ignore_index)
    expected = F.cross_entropy(other.flatten(0, 1), targets.flatten(), ignore_index=ignore_index)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    loss.backward()
    expected.backward()
    assert torch.allclose(mine.grad, other.grad, atol=1e-6)


def test_numbers_worked_by_hand():
    # z = (ln 1, ln 2, ln 5): probabilities 1/8, 2/8, 5/8
    logits = torch.tensor([[1.0, 2.0, 5.0]]).log()
    for target, probability in enumerate((1 / 8, 2 / 8, 5 / 8)):
        assert token_losses(logits, torch.tensor([target])).item() == pytest.approx(-math.log(probability), abs=1e-6)


@given(st.floats(-1e30, 1e30), st.integers(2, 20))
def test_equal_logits_of_any_size_lose_ln_v(size, n):
    assert token_losses(torch.full((1, n), size), torch.tensor([0])).item() == pytest.approx(
        math.log(n), abs=max(1e-5, abs(size) * 1e-6))


def test_huge_logits_neither_overflow_nor_vanish():
    assert log_sum_exp(torch.tensor([1e4, 1e4])).item() == pytest.approx(1e4 + math.log(2))
    assert token_losses(torch.tensor([[1e4, -1e4]]), torch.tensor([1])).item() == pytest.approx(2e4)


def test_ignored_targets_count_neither_above_nor_below_the_line():
    torch.manual_seed(0)
    logits, targets = torch.randn(6, 9), torch.randint(9, (6,))
    expected = token_losses(logits[[1, 4]], targets[[1, 4]]).mean()
    targets[[0, 2, 3, 5]] = -1
    assert cross_entropy(logits, targets, ignore_index=-1).item() == pytest.approx(expected.item())


def test_nothing_to_average_is_refused():
    with pytest.raises(ValueError, match="every target"):
        cross_entropy(torch.randn(2, 3), torch.tensor([-100, -100]))


def test_an_untrained_gpt_loses_about_ln_v():
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=257, block_size=32, n_layer=2, n_head=2, d_model=32))
    tokens = torch.randint(257, (16, 33))
    assert cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).item() == pytest.approx(math.log(257), abs=0.05)


def test_bf16_logits_are_summed_in_fp32():
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    assert token_losses(logits, torch.tensor([0])).item() == pytest.approx(math.log(4096), abs=1e-5)


def test_fp64_logits_keep_their_precision():
    logits, targets = torch.randn(6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    expected = F.cross_entropy(logits, targets)
    torch.testing.assert_close(cross_entropy(logits, targets), expected, rtol=1e-14, atol=0)  # the dtype too


def test_an_ignored_row_may_even_be_impossible():
    logits = torch.tensor([[float("-inf"), 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert cross_entropy(logits, torch.tensor([-100, 1])).item() == pytest.approx(math.log(4))
