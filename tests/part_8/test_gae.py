"""Lesson 8.4: advantages and returns, against the definition, hand-worked numbers and a language that can be listed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_8.demo_gae import World
from part_8.gae import generalised_advantages, masked_mean, whiten
from part_8.toy_language import TablePolicy, ToyLanguage

OUTSIDE = (7.0, math.inf, -math.inf, math.nan)  # what may stand where no action is


def draw(n_rows=3, n_columns=7, seed=0):
    """rewards, values (B, T) fp64, and a mask with one run of actions in each row, anywhere in it."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(n_rows, n_columns, generator=generator, dtype=torch.float64) for _ in range(2))
    first = torch.randint(n_columns, (n_rows, 1), generator=generator)
    last = first + (torch.rand(n_rows, 1, generator=generator) * (n_columns - first)).long()
    places = torch.arange(n_columns)
    return rewards, values, (places >= first) & (places <= last)


def by_definition(rewards, values, mask, gamma, lam):
    """A_t = sum over l of (gamma lambda)^l delta_{t + l}, written out (Schulman et al. 2016, equation 16)."""
    advantages = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        actions = [t for t in range(rewards.shape[1]) if mask[b, t]]
        for t in actions:
            for s in [s for s in actions if s >= t]:
                ahead = values[b, s + 1].item() if s + 1 in actions else 0.0
                delta = rewards[b, s].item() + gamma * ahead - values[b, s].item()
                advantages[b, t] += (gamma * lam) ** (s - t) * delta
    return advantages


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 9), st.integers(0, 999), st.floats(0, 1), st.floats(0, 1))
def test_advantages_are_the_sum_of_the_definition(n_rows, n_columns, seed, gamma, lam):
    rewards, values, mask = draw(n_rows, n_columns, seed)
    advantages, returns = generalised_advantages(rewards, values, mask, gamma, lam)
    expected = by_definition(rewards, values, mask, gamma, lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, torch.where(mask, expected + values, 0.0))
    assert advantages.shape == returns.shape == (n_rows, n_columns)


def test_three_tokens_worked_by_hand():
    # gamma 0.9, lambda 0.5; rewards 0, 0, 2; values 1, 2, 1.
    # deltas: 0 + 0.9 * 2 - 1 = 0.8; 0 + 0.9 * 1 - 2 = -1.1; 2 + 0 - 1 = 1
    # advantages: 1; -1.1 + 0.45 * 1 = -0.65; 0.8 + 0.45 * -0.65 = 0.5075
    rewards, values = torch.tensor([[0.0, 0.0, 2.0]]), torch.tensor([[1.0, 2.0, 1.0]])
    advantages, returns = generalised_advantages(rewards, values, torch.ones(1, 3, dtype=torch.bool), 0.9, 0.5)
    assert advantages[0].tolist() == pytest.approx([0.5075, -0.65, 1.0])
    assert returns[0].tolist() == pytest.approx([1.5075, 1.35, 2.0])


def test_lambda_one_is_the_reward_to_go_less_the_value_and_lambda_zero_the_difference_of_neighbours():
    rewards, values, _ = draw()
    everywhere = torch.ones(3, 7, dtype=torch.bool)
    advantages, returns = generalised_advantages(rewards, values, everywhere, 1.0, 1.0)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, to_go - values)
    torch.testing.assert_close(returns, to_go)
    advantages, returns = generalised_advantages(rewards, values, everywhere, 0.7, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros(3, 1, dtype=torch.float64)], 1)  # V is 0 after the end
    torch.testing.assert_close(advantages, rewards + 0.7 * following - values)
    torch.testing.assert_close(returns, rewards + 0.7 * following)


def test_unless_told_otherwise_nothing_is_discounted_and_lambda_is_0_95():
    rewards, values, _ = draw(seed=4)
    mask = torch.ones(3, 7, dtype=torch.bool)
    expected = by_definition(rewards, values, mask, 1.0, 0.95)
    torch.testing.assert_close(generalised_advantages(rewards, values, mask)[0], expected)


@pytest.mark.parametrize("junk", OUTSIDE)
def test_what_stands_in_prompt_and_padding_changes_nothing_and_gets_zeros(junk):
    rewards, values, mask = draw(seed=1)
    expected = generalised_advantages(rewards, values, mask, 0.9, 0.8)
    found = generalised_advantages(*(torch.where(mask, x, junk) for x in (rewards, values)), mask, 0.9, 0.8)
    for one, other in zip(found, expected):
        assert torch.equal(one, other) and (one[~mask] == 0).all()


def test_rows_are_none_of_each_others_business_and_may_stand_anywhere():
    rewards, values, mask = draw(4, 9, seed=2)
    whole = generalised_advantages(rewards, values, mask, 0.9, 0.8)
    for b in range(4):
        run = mask[b].nonzero()[:, 0]
        alone = generalised_advantages(rewards[b:b + 1, run], values[b:b + 1, run], mask[b:b + 1, run], 0.9, 0.8)
        for one, other in zip(whole, alone):
            torch.testing.assert_close(one[b, run], other[0])


def test_the_values_get_no_gradient_through_advantages_or_returns():
    rewards, values, mask = draw()
    for part in generalised_advantages(rewards.requires_grad_(), values.requires_grad_(), mask):
        assert not part.requires_grad


def test_inputs_are_left_as_they_were():
    rewards, values, mask = draw()
    kept = rewards.clone(), values.clone(), mask.clone()
    generalised_advantages(rewards, values, mask)
    whiten(rewards, mask)
    assert all(torch.equal(one, other) for one, other in zip((rewards, values, mask), kept))


@settings(deadline=None)
@given(st.integers(1, 4), st.integers(1, 6), st.integers(0, 999))
def test_the_masked_mean_is_the_mean_of_what_is_masked_in(n_rows, n_columns, seed):
    x, _, mask = draw(n_rows, n_columns, seed)
    assert masked_mean(torch.where(mask, x, math.nan), mask).item() == pytest.approx(x[mask].mean().item())


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no token"):
        masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))


@pytest.mark.parametrize("junk", OUTSIDE)
def test_white_numbers_have_spread_one_and_mean_zero_or_the_mean_they_had(junk):
    x, _, mask = draw(5, 9, seed=3)
    x = 4 * x + 3
    inside = x[mask]
    for keep_mean, mean in ((False, 0.0), (True, inside.mean().item())):
        white = whiten(torch.where(mask, x, junk), mask, keep_mean)
        assert white[mask].mean().item() == pytest.approx(mean, abs=1e-9)
        assert white[mask].std(correction=0).item() == pytest.approx(1, abs=1e-6)
        assert (white[~mask] == 0).all()
        assert torch.equal(white[mask].argsort(), inside.argsort())


@pytest.mark.parametrize("value", [0.0, -2.5, 1e6])
def test_numbers_that_are_all_the_same_have_no_spread_and_are_numbers(value):
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.full((2, 3), value)
    assert whiten(x, mask).abs().max().item() == 0
    assert torch.equal(whiten(x, mask, keep_mean=True), torch.where(mask, x, 0.0))


def test_returns_are_of_rewards_as_they_are_and_do_not_change_when_advantages_are_whitened():
    rewards, values, mask = draw(seed=8)
    advantages, returns = generalised_advantages(rewards, values, mask, 1.0, 0.9)
    kept = returns.clone()
    white = whiten(advantages, mask)
    assert torch.equal(returns, kept) and not torch.allclose(white + values, kept)
    torch.testing.assert_close(kept, torch.where(mask, by_definition(rewards, values, mask, 1.0, 0.9) + values, 0.0))


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.95, 1.0])
def test_with_exact_values_the_advantage_has_no_bias_at_any_lambda_and_lambda_zero_no_variance(lam):
    world = World(5, seed=3)
    bias, variance, gradient_bias, _ = world.errors(world.true_values, lam).tolist()
    assert bias < 1e-10 and gradient_bias < 1e-10
    assert variance == pytest.approx(0, abs=1e-6) if lam == 0 else variance > 0.01


def test_lambda_one_has_no_bias_whatever_the_values_are_and_smaller_ones_have():
    world = World(5, seed=3)
    wrong = world.true_values + torch.randn(world.true_values.shape, generator=torch.Generator().manual_seed(0))
    found = {lam: world.errors(wrong, lam).tolist() for lam in (0.0, 0.5, 1.0)}
    assert found[1.0][0] < 1e-10 and found[1.0][2] < 1e-10
    assert found[0.0][0] > found[0.5][0] > 0.01 and found[0.0][2] > found[0.5][2] > 0.01
    assert found[0.0][1] < found[0.5][1] < found[1.0][1]


def test_what_the_demo_takes_for_true_is_what_autograd_finds_in_the_list_of_all_answers():
    world = World(4, seed=5)
    scores = world.rewards.sum(1)
    assert (world.probabilities @ scores).item() == pytest.approx(0, abs=1e-5)
    policy = TablePolicy(ToyLanguage(3, 4))
    policy.logits.data = world.pi.log()
    (policy.probabilities() @ scores).backward()
    torch.testing.assert_close(world.true_gradient, policy.logits.grad, atol=1e-5, rtol=1e-4)


def test_the_demo_s_variance_of_the_gradient_is_that_of_single_answers():
    world, lam = World(3, seed=6), 0.6
    values = torch.randn(world.true_values.shape, generator=torch.Generator().manual_seed(1))
    advantages, _ = generalised_advantages(world.rewards, values[world.states], world.mask, 1.0, lam)
    policy = TablePolicy(ToyLanguage(3, 3))
    policy.logits.data = world.pi.log()
    log_probs, gradients = policy(torch.arange(len(scores := world.probabilities)))[0], []
    for row in range(len(scores)):
        total = (log_probs[row] * advantages[row])[world.mask[row]].sum()
        gradients.append(torch.autograd.grad(total, policy.logits, retain_graph=True)[0].flatten())
    gradients = torch.stack(gradients)
    mean = world.probabilities @ gradients
    bias2 = ((mean - world.true_gradient.flatten()) ** 2).sum()
    variance = world.probabilities @ ((gradients - mean) ** 2).sum(1)
    assert world.errors(values, lam)[2:].tolist() == pytest.approx([bias2.item(), variance.item()], rel=1e-3)
