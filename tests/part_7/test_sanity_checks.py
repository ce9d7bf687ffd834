"""Lesson 7.4: the statistics, against numpy, numbers worked by hand, and all subsets enumerated."""

import math
from itertools import combinations, permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_7.demo_sanity_checks import best_of, calibrate
from part_7.sanity_checks import (
    best_of_n,
    best_of_n_kl,
    calibration,
    correlation,
    correlation_within,
    rank_correlation,
    ranks,
    share_above,
)

FEW = st.lists(st.integers(-3, 3), min_size=1, max_size=12)  # so that values come twice


def fp64(*values):
    return torch.tensor(values, dtype=torch.float64)


def pairs_of(values, n):
    """Two lists of the same length, hypothesis."""
    return st.lists(st.tuples(values, values), min_size=n, max_size=20).map(lambda both: tuple(map(list, zip(*both))))


@given(FEW)
def test_a_rank_is_how_many_are_below_and_half_of_the_equal_ones(values):
    expected = [sum(other < value for other in values) + (sum(other == value for other in values) + 1) / 2
                for value in values]
    assert ranks(values).tolist() == expected


def test_ranks_by_hand():
    assert ranks([10, 20, 20, 5]).tolist() == [2, 3.5, 3.5, 1]  # places 3 and 4 are shared
    assert ranks([7, 7, 7]).tolist() == [2, 2, 2]
    assert ranks(torch.tensor([0.5, -0.5])).tolist() == [2, 1]


@given(pairs_of(st.floats(-10, 10).map(lambda x: round(x, 2)), 2))
def test_correlation_is_numpy_s(both):
    x, y = both
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert correlation(fp64(*x), fp64(*y)) == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-9)


def test_correlation_by_hand():
    # Deviations (-1, 0, 1) and (-1, 1, 0): 1 / (sqrt 2 sqrt 2).
    assert correlation([1, 2, 3], [4, 6, 5]) == pytest.approx(0.5)
    assert correlation([1, 2, 3], [8, 6, 4]) == pytest.approx(-1)


@pytest.mark.parametrize("constant", [0.0, 2.0, 0.1, 0.7])
@pytest.mark.parametrize("n", [2, 3, 7, 10])
def test_correlation_is_nan_where_one_of_the_two_does_not_vary(constant, n):
    assert math.isnan(correlation([constant] * n, range(n))) and math.isnan(correlation(range(n), [constant] * n))


@given(st.permutations(range(1, 8)))
def test_without_ties_spearman_s_is_the_formula_of_squared_differences(y):
    x = range(1, 8)
    squares = sum((a - b) ** 2 for a, b in zip(x, y))
    assert rank_correlation(list(x), y) == pytest.approx(1 - 6 * squares / (7 * 48))  # Spearman 1904


def test_spearman_s_with_ties_by_hand_and_whatever_the_scale():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5).
    assert rank_correlation([0, 1, 1, 9], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(22.5))
    x = torch.tensor([0.3, -1.0, 2.0, 5.0])
    assert rank_correlation(x, x.exp()) == pytest.approx(1) and rank_correlation(x, -x**3) == pytest.approx(-1)


def test_within_groups_the_trend_between_them_is_gone():
    # Simpson's paradox: in both groups y falls as x grows, but the group of greater x has greater y.
    x, y, groups = [0, 1, 2, 10, 11, 12], [2, 1, 0, 12, 11, 10], [0, 0, 0, 1, 1, 1]
    assert correlation(x, y) > 0.9
    assert correlation_within(x, y, groups) == pytest.approx(-1)
    # And by hand: deviations of x (-1, 1, -1, 1), of y (-1, 1, 3, -3) are -4 / sqrt(4 * 20).
    assert correlation_within([0, 2, 5, 7], [0, 2, 9, 3], [0.5, 0.5, -1, -1]) == pytest.approx(-4 / math.sqrt(80))


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5), st.integers(0, 2)), min_size=6, max_size=20))
def test_within_groups_is_the_correlation_of_a_regression_s_residuals(rows):
    x, y, groups = map(list, zip(*rows))
    dummies = np.array([[group == g for g in range(3)] for group in groups], float)
    left = [np.array(values) - dummies @ np.linalg.lstsq(dummies, np.array(values, float), rcond=None)[0]
            for values in (x, y)]
    if min(np.ptp(values) for values in left) > 1e-9:
        assert correlation_within(x, y, groups) == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)


def test_within_groups_the_arguments_are_left_as_they_were():
    x, y = fp64(1, 2, 4), fp64(3, 1, 0)
    correlation_within(x, y, [0, 0, 0])
    assert x.tolist() == [1, 2, 4] and y.tolist() == [3, 1, 0]


def test_calibration_by_hand():
    bins = calibration(fp64(0.05, 0.0, 0.5, 0.55, 0.99, 1.0), torch.tensor([0, 1, 1, 1, 1, 0]))
    assert bins == [(pytest.approx(0.025), 0.5, 2), (pytest.approx(0.525), 1, 2), (pytest.approx(0.995), 0.5, 2)]
    assert calibration(fp64(0.2, 0.6), torch.tensor([True, False]), 2) == [
        (pytest.approx(0.2), 1, 1), (pytest.approx(0.6), 0, 1)]
    assert calibration(fp64(0.2, 0.6), torch.tensor([True, False]), 1) == [(pytest.approx(0.4), 0.5, 2)]


def test_outcomes_that_are_drawn_with_the_predicted_probability_are_calibrated():
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(40_000, generator=generator)
    bins = calibration(p, torch.rand(40_000, generator=generator) < p)
    assert sum(n for _, _, n in bins) == 40_000 and len(bins) == 10
    for i, (predicted, observed, n) in enumerate(bins):
        assert i / 10 <= predicted <= (i + 1) / 10
        assert abs(predicted - observed) < 4 * math.sqrt(0.25 / n)


def test_the_demo_s_calibration_takes_off_the_scale_and_turns_half_of_the_pairs_round():
    generator = torch.Generator().manual_seed(3)
    a, b = 2 * torch.randn(2, 20_000, generator=generator)  # as they were trained
    right = torch.rand(20_000, generator=generator) < torch.sigmoid(a - b)
    chosen, rejected = (3 * torch.where(side, a, b) - 7 for side in (right, ~right))  # gain 3, bias -7
    bins = calibrate(chosen, rejected, 3.0, 0)
    assert len(bins) == 10 and abs(sum(observed * n for _, observed, n in bins) / 20_000 - 0.5) < 0.02
    assert all(abs(predicted - observed) < 4 * math.sqrt(0.25 / n) for predicted, observed, n in bins)


def test_the_demo_doubles_n_and_ends_with_all_samples():
    rewards, utilities = torch.tensor([[3.0, 1, 2, 0, -1]]), torch.tensor([[0.0, 1, 2, 3, 4]])
    assert [n for n, *_ in best_of(rewards, utilities, 5)] == [1, 2, 4, 5]
    assert [n for n, *_ in best_of(rewards[:, :4], utilities[:, :4], 4)] == [1, 2, 4]
    assert [column.item() for column in best_of(rewards, utilities, 5)[-1][1:]] == [3, 0, 4]


@given(pairs_of(st.integers(-2, 2), 1))
def test_share_above_counts_ties_half(both):
    expected = sum(1 if a > b else 0.5 if a == b else 0 for a, b in zip(*both)) / len(both[0])
    assert share_above(*map(torch.tensor, both)) == pytest.approx(expected)


def enumerated(rewards, utilities, n):
    """The mean utility of the highest reward over all subsets of n samples; where it comes twice, the mean of those, as all
    ways of breaking ties over all samples are tried."""
    values = []
    for order in permutations(range(len(rewards))):  # who comes first wins a tie
        for subset in combinations(range(len(rewards)), n):
            values.append(utilities[max(subset, key=lambda i: (rewards[i], order[i]))])
    return sum(values) / len(values)


@pytest.mark.parametrize("rewards", [[0.3, -1.0, 2.0, 0.1, 5.0], [1.0, 1.0, 0.0, 0.0, 2.0], [2.0, 3.0, 3.0, 3.0, 1.0],
                                     [0.0] * 5])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_best_of_n_is_the_mean_over_all_subsets_and_all_ways_to_break_ties(rewards, n):
    utilities = [4.0, -1.0, 0.5, 2.5, -3.0]
    both = torch.tensor([rewards, utilities]), torch.tensor([utilities, utilities])
    assert best_of_n(*both, n).tolist() == pytest.approx(
        [enumerated(rewards, utilities, n), enumerated(utilities, utilities, n)])


def test_best_of_1_is_the_mean_and_best_of_all_the_one_with_the_highest_reward():
    generator = torch.Generator().manual_seed(1)
    rewards, utilities = torch.randn(2, 30, 64, generator=generator)
    torch.testing.assert_close(best_of_n(rewards, utilities, 1), utilities.double().mean(1))
    torch.testing.assert_close(best_of_n(rewards, utilities, 64),
                               utilities.double()[torch.arange(30), rewards.argmax(1)])
    torch.testing.assert_close(best_of_n(utilities, utilities, 64), utilities.double().max(1).values)


def test_the_highest_of_2_normal_numbers_is_one_over_root_pi():
    rewards = torch.randn(2000, 64, generator=torch.Generator().manual_seed(2))
    assert best_of_n(rewards, rewards, 2).mean().item() == pytest.approx(1 / math.sqrt(math.pi), abs=0.015)


@pytest.mark.parametrize("n", [-1, 0, 5])
def test_best_of_n_refuses_more_samples_than_there_are_and_none(n):
    with pytest.raises(ValueError, match=f"between 1 and the 4 samples, not {n}"):
        best_of_n(torch.zeros(2, 4), torch.zeros(2, 4), n)


def kl_of_the_best(n_outcomes, n):
    """The exact divergence for a uniform policy whose outcomes have different rewards: the i-th best of m is the best of n
    draws with probability (i^n - (i - 1)^n) / m^n."""
    i, m = np.arange(1, n_outcomes + 1), float(n_outcomes)
    p = (i / m) ** n - ((i - 1) / m) ** n
    return (p[p > 0] * np.log(p[p > 0] * m)).sum()


def test_the_closed_probability_of_the_best_is_that_of_all_draws_enumerated():
    draws = list(product(range(4), repeat=3))
    shares = [sum(max(draw) == i for draw in draws) / len(draws) for i in range(4)]
    assert kl_of_the_best(4, 3) == pytest.approx(sum(p * math.log(4 * p) for p in shares))


@pytest.mark.parametrize("n", [1, 2, 4, 16, 64])
def test_the_divergence_is_the_limit_of_many_outcomes_and_never_less_than_of_few(n):
    assert best_of_n_kl(n) == pytest.approx(kl_of_the_best(2_000_000, n), abs=1e-4)
    assert best_of_n_kl(n) >= kl_of_the_best(10, n) - 1e-12
    assert best_of_n_kl(1) == 0 and best_of_n_kl(2) == pytest.approx(0.6931472 - 0.5)
