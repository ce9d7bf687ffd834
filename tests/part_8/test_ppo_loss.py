"""Lesson 8.3: PPO's losses, against numbers worked by hand and the plain policy gradient."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_8.ppo_loss import clipped_surrogate, policy_loss, value_loss

OUTSIDE = (7.0, -1e30, 1e30, math.inf, -math.inf, math.nan)  # what may stand where no token of an answer is


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def logs(*ratios):
    """log-probabilities with these ratios to old ones of 0, that record gradients."""
    return numbers(*ratios).log().requires_grad_()


def draw(n_rows=4, n_columns=6, seed=0):
    """new, old, advantages and a mask with 1 to n_columns - 1 tokens a row, the first column never among them."""
    generator = torch.Generator().manual_seed(seed)
    new, old, advantages = (torch.randn(n_rows, n_columns, generator=generator, dtype=torch.float64) for _ in range(3))
    lengths = torch.randint(1, n_columns, (n_rows, 1), generator=generator)
    places = torch.arange(n_columns)
    return (0.3 * new - 2).requires_grad_(), 0.3 * old - 2, advantages, (places >= 1) & (places <= lengths)


@pytest.mark.parametrize("ratio, advantage, loss, clipped", [
    (1.0, 2.0, -2.0, False),
    (1.1, 2.0, -2.2, False),
    (1.5, 2.0, -2.4, True),  # min(3.0, 1.2 * 2)
    (0.5, 2.0, -1.0, False),  # min(1.0, 0.8 * 2): further down is worse, however far
    (0.9, -2.0, 1.8, False),
    (0.5, -2.0, 1.6, True),  # min(-1.0, 0.8 * -2)
    (1.5, -2.0, 3.0, False),  # min(-3.0, 1.2 * -2)
    (1.5, 0.0, 0.0, False)])
def test_the_surrogate_is_what_is_worked_out_by_hand(ratio, advantage, loss, clipped):
    losses, are_clipped = clipped_surrogate(numbers(math.log(ratio) - 3), numbers(-3.0), numbers(advantage))
    assert losses.item() == pytest.approx(loss, abs=1e-12)
    assert are_clipped.tolist() == [clipped]


@pytest.mark.parametrize("ratio, advantage, gradient", [
    (1.3, 2.0, 0.0),  # has risen enough
    (0.7, -2.0, 0.0),  # has fallen enough
    (0.7, 2.0, -1.4),  # fell where it should rise: -A rho
    (1.3, -2.0, 2.6),  # rose where it should fall
    (1.19, 2.0, -2.38), (0.81, -2.0, 1.62)])
def test_the_gradient_is_zero_only_where_the_step_has_done_enough(ratio, advantage, gradient):
    new = logs(ratio)
    losses, clipped = clipped_surrogate(new, numbers(0.0), numbers(advantage))
    losses.sum().backward()
    assert new.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert clipped.item() == (gradient == 0)


@settings(deadline=None)
@given(st.floats(0.01, 5), st.floats(-3, 3).filter(lambda x: abs(x) > 1e-3), st.floats(0.05, 0.9), st.floats(0.05, 2))
def test_a_token_that_is_called_clipped_is_one_without_gradient(ratio, advantage, clip, clip_high):
    new = logs(ratio)
    losses, clipped = clipped_surrogate(new, numbers(0.0), numbers(advantage), clip, clip_high)
    losses.sum().backward()
    bound = 1 + clip_high if advantage > 0 else 1 - clip
    enough = ratio > bound if advantage > 0 else ratio < bound
    if abs(ratio - bound) > 1e-9:
        assert clipped.item() == enough == (new.grad.item() == 0)
        expected = -advantage * (bound if enough else ratio)
        assert losses.item() == pytest.approx(expected, rel=1e-9)


def test_an_upper_bound_of_its_own_moves_that_side_only():
    ratios, advantages = (1.25, 1.35, 0.75, 0.85), numbers(1.0, 1.0, -1.0, -1.0)
    for clip_high, expected in ((None, [-1.2, -1.2, 0.8, 0.85]), (0.28, [-1.25, -1.28, 0.8, 0.85])):
        losses, clipped = clipped_surrogate(logs(*ratios), torch.zeros(4, dtype=torch.float64), advantages, 0.2, clip_high)
        assert losses.tolist() == pytest.approx(expected, abs=1e-12)
        assert clipped.tolist() == [clip_high is None, True, True, False]
        assert losses.requires_grad and not clipped.requires_grad


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient():
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    _, _, advantages, mask = draw(3, 5)
    actions = torch.randint(7, (3, 5, 1), generator=torch.Generator().manual_seed(2))
    log_probs = logits.log_softmax(-1).gather(-1, actions)[..., 0]
    [gradient] = torch.autograd.grad(policy_loss(log_probs, log_probs.detach(), advantages, mask)[0], logits)
    # -A d log pi(a) / d z = -A (one_hot(a) - pi), a mean over the tokens of the mask
    score = torch.zeros_like(logits).scatter(-1, actions, 1.0) - logits.detach().softmax(-1)
    torch.testing.assert_close(gradient, -(advantages * mask)[..., None] * score / mask.sum())


def test_the_loss_follows_finite_differences_away_from_its_corners():
    new, old, advantages, mask = draw(seed=3)
    assert torch.autograd.gradcheck(lambda x: policy_loss(x, old, advantages, mask)[0], new)


def test_the_mean_is_over_tokens_and_not_over_rows():
    # At ratio 1 the loss is -A: 3 tokens with A = 1 and one with A = 5. Over tokens -8/4; over rows it would be -(1 + 5)/2.
    zeros, mask = torch.zeros(2, 4), torch.tensor([[True, True, True, False], [False, True, False, False]])
    loss, share = policy_loss(zeros, zeros, torch.tensor([[1.0] * 4, [5.0] * 4]), mask)
    assert loss.item() == -2.0 and share.item() == 0.0


def test_the_clipped_share_counts_the_tokens_of_the_mask():
    new = torch.tensor([[1.5, 1.5, 1.0, 1.5], [0.5, 0.5, 1.5, 1.0]]).log()
    mask = torch.tensor([[False, True, True, True], [True, True, True, False]])
    # clipped are two of the first row's three tokens; of the second row's 0.5 with A > 0 not, 1.5 is: three of six
    share = policy_loss(new, torch.zeros(2, 4), torch.ones(2, 4), mask)[1]
    assert share.item() == 0.5


def test_the_loss_bounds_the_ratio_as_it_is_told():
    new, mask = logs(1.5, 0.5), torch.ones(2, dtype=torch.bool)
    for bounds, expected in (((0.2,), -(1.2 - 0.8) / 2), ((0.3,), -(1.3 - 0.7) / 2), ((0.3, 0.1), -(1.1 - 0.7) / 2)):
        loss, share = policy_loss(new, numbers(0.0, 0.0), numbers(1.0, -1.0), mask, *bounds)
        assert loss.item() == pytest.approx(expected, abs=1e-12) and share.item() == 1.0


@pytest.mark.parametrize("junk", OUTSIDE)
def test_what_stands_outside_the_mask_changes_neither_policy_loss_nor_gradient(junk):
    new, old, advantages, mask = draw()
    expected, share = policy_loss(new, old, advantages, mask)
    [gradient] = torch.autograd.grad(expected, new)
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
    whole = [x.detach() for x in (new, old, advantages)]
    spoilt = [torch.where(mask, x, junk) for x in whole]
    for which in ([0], [1], [2], [0, 1, 2]):  # alone and all at once
        first, *others = (spoilt[i] if i in which else whole[i] for i in range(3))
        again = first.clone().requires_grad_()
        loss, same_share = policy_loss(again, *others, mask)
        assert loss.item() == expected.item() and same_share.item() == share.item()
        torch.testing.assert_close(torch.autograd.grad(loss, again)[0], gradient)


def test_every_token_of_the_mask_has_a_part_the_end_token_too():
    # prompt, prompt, answer, end token, padding: the loss must follow the third and fourth number and no other
    mask = torch.tensor([[False, False, True, True, False]])
    new = torch.zeros(1, 5, requires_grad=True)
    policy_loss(new, torch.zeros(1, 5), torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]]), mask)[0].backward()
    assert new.grad.tolist() == [[0.0, 0.0, -1.5, -2.0, 0.0]]


@pytest.mark.parametrize("value, old, ret, clip, loss, gradient", [
    (3.0, 1.0, 2.0, None, 0.5, 1.0),  # (3 - 2)^2 / 2
    (1.1, 1.0, 2.0, 0.2, 0.405, -0.9),  # has moved by less than clip: 0.9^2 / 2
    (1.9, 1.0, 2.0, 0.2, 0.32, 0.0),  # bounded to 1.2, whose error 0.8 is larger than 0.1: no gradient, it has moved enough
    (3.0, 1.0, 2.0, 0.2, 0.5, 1.0),  # past the return: its own error 1 is larger than 0.8 of the bounded one
    (0.5, 1.0, 2.0, 0.2, 1.125, -1.5),  # away from the return: 1.5 against 1.2
    (-0.9, 0.0, -1.0, 0.2, 0.32, 0.0)])  # downwards, bounded to -0.2
def test_the_value_loss_is_what_is_worked_out_by_hand(value, old, ret, clip, loss, gradient):
    values = numbers(value).requires_grad_()
    found = value_loss(values, numbers(old), numbers(ret), torch.tensor([True]), clip)
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-12) and values.grad.item() == pytest.approx(gradient, abs=1e-12)


def test_the_value_loss_without_clipping_is_half_of_torch_s_mean_squared_error_of_the_tokens():
    values, old, returns, mask = draw(seed=5)
    expected = 0.5 * torch.nn.functional.mse_loss(values[mask], returns[mask])
    torch.testing.assert_close(value_loss(values, old, returns, mask), expected)


def test_a_bound_wider_than_every_move_changes_no_value_loss_and_a_narrow_one_only_raises_it():
    values, old, returns, mask = draw(seed=6)
    plain = value_loss(values, old, returns, mask).item()
    assert value_loss(values, old, returns, mask, 100.0).item() == pytest.approx(plain, abs=1e-12)
    assert value_loss(values, old, returns, mask, 0.01).item() > plain


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("junk", OUTSIDE)
def test_what_stands_outside_the_mask_changes_neither_value_loss_nor_gradient(junk, clip):
    values, old, returns, mask = draw(seed=7)
    expected = value_loss(values, old, returns, mask, clip)
    [gradient] = torch.autograd.grad(expected, values)
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).any()
    whole = [x.detach() for x in (values, old, returns)]
    spoilt = [torch.where(mask, x, junk) for x in whole]
    for which in ([0], [1], [2], [0, 1, 2]):
        first, *others = (spoilt[i] if i in which else whole[i] for i in range(3))
        again = first.clone().requires_grad_()
        loss = value_loss(again, *others, mask, clip)
        assert loss.item() == expected.item()
        torch.testing.assert_close(torch.autograd.grad(loss, again)[0], gradient)


def test_a_batch_without_a_token_is_refused():
    nothing = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="no token"):
        policy_loss(nothing, nothing, nothing, torch.zeros(2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no token"):
        value_loss(nothing, nothing, nothing, torch.zeros(2, 3, dtype=torch.bool))
