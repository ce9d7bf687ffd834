"""Lessons 9.1 and 9.2: a group's advantages, against numbers worked by hand and the gradient of an enumerated language."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_8.toy_language import TablePolicy, ToyLanguage
from part_9.group_advantage import EPS, as_groups, group_advantages, has_spread

AWKWARD = (0.1, 1 / 3, 0.7, -2.3e-3, 1e-8, 12345.678)  # the mean of G of these may not be the number itself


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(n, seed=0):
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rewards, G, expected", [
    ((1.0, 3.0), 2, (-1.0, 1.0)),  # mean 2
    ((1.0, 2.0, 6.0), 3, (-2.0, -1.0, 3.0)),  # mean 3
    ((1.0, 0.0, 0.0, 0.0), 4, (0.75, -0.25, -0.25, -0.25)),
    ((1.0, 3.0, -5.0, 5.0), 2, (-1.0, 1.0, -5.0, 5.0)),  # two groups, each with a mean of its own: 2 and 0
    ((1.0, 3.0, -5.0, 5.0), 4, (0.0, 2.0, -6.0, 4.0))])  # the same as one group: mean 1
def test_an_advantage_is_the_distance_from_the_group_s_mean(rewards, G, expected):
    assert group_advantages(numbers(*rewards), G, normalise=False).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("rewards, G, expected", [
    ((1.0, 3.0), 2, (-1 / 1.0001, 1 / 1.0001)),  # mean 2, squared distances 1, 1: spread 1; over G - 1 it would be 1.41
    ((0.0, 0.0, 0.0, 4.0), 4, (*[-1 / (math.sqrt(3) + 1e-4)] * 3, 3 / (math.sqrt(3) + 1e-4))),  # mean 1, spread sqrt(12 / 4)
    ((0.0, 2.0, 0.0, 20.0), 2, (-1 / 1.0001, 1 / 1.0001, -10 / 10.0001, 10 / 10.0001))])  # each by its own spread
def test_normalised_it_is_divided_by_the_spread_over_G_plus_eps(rewards, G, expected):
    assert EPS == 1e-4
    assert group_advantages(numbers(*rewards), G).tolist() == pytest.approx(expected, abs=1e-12)
    assert group_advantages(numbers(*rewards), G, normalise=True).tolist() == pytest.approx(expected, abs=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=12, max_size=12), st.sampled_from([2, 3, 4, 6, 12]))
def test_each_group_adds_up_to_zero_and_normalised_has_spread_one_up_to_eps(rewards, G):
    rewards = numbers(*rewards)
    for normalise in (False, True):
        assert group_advantages(rewards, G, normalise).view(-1, G).sum(1).abs().max().item() < 1e-9
    advantages = group_advantages(rewards, G)
    for group, own in zip(rewards.view(-1, G), advantages.view(-1, G)):
        mean = sum(group.tolist()) / G
        spread = math.sqrt(sum((x - mean) ** 2 for x in group.tolist()) / G)
        assert math.sqrt((own**2).mean().item()) == pytest.approx(spread / (spread + 1e-4), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("reward", AWKWARD)
@pytest.mark.parametrize("G", [2, 3, 5, 7, 8, 10])
def test_equal_rewards_give_exactly_zero_however_their_mean_is_rounded(reward, G, dtype):
    rewards = torch.full((2 * G,), reward, dtype=dtype)
    rewards[G] += 1  # the second group is not all alike
    for normalise in (False, True):
        advantages = group_advantages(rewards, G, normalise)
        assert advantages[:G].tolist() == [0.0] * G
        assert advantages[G] > 0 and (advantages[G + 1:] < 0).all()
    assert has_spread(rewards, G).tolist() == [False, True]


def test_a_difference_as_small_as_a_float_can_show_is_spread():
    rewards = torch.tensor([0.1, 0.1, 0.1, math.nextafter(0.1, 1.0)], dtype=torch.float64)
    assert has_spread(rewards, 2).tolist() == [False, True] and has_spread(rewards, 4).tolist() == [True]
    assert has_spread(-rewards, 4).tolist() == [True]


@given(st.permutations(range(4)), st.permutations(range(3)), st.booleans())
def test_reordering_answers_or_groups_reorders_their_advantages_and_nothing_else(answers, groups, normalise):
    rewards = draw(12).view(3, 4)
    expected = group_advantages(rewards.flatten(), 4, normalise).view(3, 4)[groups][:, answers]
    moved = group_advantages(rewards[groups][:, answers].flatten(), 4, normalise).view(3, 4)
    torch.testing.assert_close(moved, expected, rtol=1e-12, atol=1e-12)


@given(st.floats(-50, 50), st.floats(0.1, 50))
def test_a_prompt_s_level_does_not_count_and_its_scale_only_without_division(level, scale):
    rewards = draw(8, 1)
    plain, divided = group_advantages(rewards, 4, False), group_advantages(rewards, 4)
    other = level + scale * rewards
    torch.testing.assert_close(group_advantages(other, 4, False), scale * plain, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(group_advantages(other, 4), divided, rtol=0, atol=2e-2)  # eps weighs less or more
    torch.testing.assert_close(group_advantages(level + rewards, 4), divided, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("p", [0.125, 0.25, 0.5, 0.875])
def test_right_and_wrong_answers_share_the_credit_by_how_rare_they_are(p):
    n_right = int(8 * p)
    rewards = numbers(*[1.0] * n_right, *[0.0] * (8 - n_right))
    right, wrong = group_advantages(rewards, 8, False)[[0, -1]].tolist()
    assert (right, wrong) == (pytest.approx(1 - p), pytest.approx(-p))
    right, wrong = group_advantages(rewards, 8)[[0, -1]].tolist()  # the spread is sqrt(p (1 - p))
    assert right == pytest.approx(math.sqrt((1 - p) / p), rel=1e-3)
    assert wrong == pytest.approx(-math.sqrt(p / (1 - p)), rel=1e-3)


@pytest.mark.parametrize("normalise", [False, True])
def test_a_reward_that_is_no_number_spoils_its_own_group_and_no_other(normalise):
    rewards = draw(9)
    expected = group_advantages(rewards, 3, normalise)
    rewards[4] = math.nan
    found = group_advantages(rewards, 3, normalise)
    # no pair of the group compares as different, so it counts as one without spread: 0, and never nan in the loss
    assert found[3:6].tolist() == [0.0] * 3 and has_spread(rewards, 3).tolist() == [True, False, True]
    assert found[[0, 1, 2, 6, 7, 8]].tolist() == expected[[0, 1, 2, 6, 7, 8]].tolist()


@pytest.mark.parametrize("function", [group_advantages, has_spread, as_groups])
@pytest.mark.parametrize("n, G, message", [
    (4, 1, "at least 2 answers, not 1"), (4, 0, "at least 2 answers, not 0"), (4, -2, "at least 2 answers, not -2"),
    (5, 2, "5 rewards are no groups of 2"), (2, 4, "2 rewards are no groups of 4")])
def test_groups_of_one_and_incomplete_groups_are_refused(function, n, G, message):
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(n), G)


def test_groups_lie_side_by_side_and_the_type_is_kept():
    assert as_groups(torch.arange(6.0), 3).tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert group_advantages(torch.arange(6.0), 3).dtype == torch.float32
    assert group_advantages(torch.arange(6.0), 3).shape == (6,)


def policy_gradient(policy, weights):
    """sum_y weights_y grad log pi(y), flat."""
    [gradient] = torch.autograd.grad(weights @ policy.probabilities().log(), policy.logits)
    return gradient.flatten()


@pytest.mark.parametrize("vocab_size, length, G", [
    (2, 2, 2), (2, 2, 3), (3, 1, 2), (3, 1, 3), (3, 2, 2), (3, 2, 3), (3, 2, 4)])
@pytest.mark.parametrize("seed", [0, 1])
def test_over_all_groups_there_are_the_gradient_is_G_minus_1_in_G_of_the_policy_gradient(vocab_size, length, G, seed):
    policy = TablePolicy(ToyLanguage(vocab_size, length), seed).double()
    p = policy.probabilities().detach()
    rewards = draw(len(p), seed + 10)
    groups = torch.cartesian_prod(*[torch.arange(len(p))] * G)  # (N^G, G), of which each comes with this probability:
    chances = p[groups].prod(1, keepdim=True)
    advantages = group_advantages(rewards[groups].flatten(), G, normalise=False).view(-1, G)
    weights = torch.zeros_like(p).index_add(0, groups.flatten(), (chances * advantages / G).flatten())
    exact = policy_gradient(policy, p * rewards)  # grad E[r] = E[r grad log pi]
    assert exact.norm() > 0.01
    torch.testing.assert_close(policy_gradient(policy, weights), (G - 1) / G * exact, rtol=1e-9, atol=1e-12)


def test_the_mean_of_the_others_is_the_same_baseline_times_G_over_G_minus_1():
    rewards, G = draw(6), 6
    others = (rewards.sum() - rewards) / (G - 1)  # an answer's own reward is not in it: no bias at all
    torch.testing.assert_close(group_advantages(rewards, G, False) * G / (G - 1), rewards - others)
