"""Lesson 8.5: what adapts, against hand-worked numbers and a closed loop; estimates against enumeration and torch's own."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_8.policy import divergences
from part_8.stability import RunningSpread, adapted_beta, adapted_length, approximate_kl, explained_variance

POSITIVE = st.floats(1e-3, 1e3)
FP32 = st.floats(-1e4, 1e4, width=32)


# beta


@pytest.mark.parametrize("kl, target, horizon, n, expected", [
    (5.5, 5.0, 1000, 100, 0.101),  # 10 % too far: 0.1 (1 + 0.1 * 100 / 1000)
    (4.5, 5.0, 1000, 100, 0.099),
    (5.0, 5.0, 1000, 100, 0.1),
    (5.5, 5.0, 1000, 200, 0.102),  # twice the answers, twice the change
    (5.5, 5.0, 2000, 100, 0.1005),  # twice the horizon, half of it
    (5.5, 11.0, 1000, 100, 0.098),  # half the target is 50 % too near, of which 20 % count
])
def test_beta_moves_by_the_relative_distance_from_the_target_per_horizon_of_answers(kl, target, horizon, n, expected):
    assert adapted_beta(0.1, kl, target, horizon, n) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kl, expected", [
    (5.999, 0.1 * (1 + 0.1998)), (6.0, 0.12), (6.001, 0.12), (1e9, 0.12),  # above: a fifth after one horizon, at most
    (4.001, 0.1 * (1 - 0.1998)), (4.0, 0.08), (3.999, 0.08), (0.0, 0.08), (-7.0, 0.08)])  # an estimate may be negative
def test_the_distance_counts_up_to_a_fifth_either_way(kl, expected):
    assert adapted_beta(0.1, kl, 5.0, 1000, 1000) == pytest.approx(expected, rel=1e-9)


@given(POSITIVE, st.floats(-10, 1e3), POSITIVE, st.integers(1, 500), st.integers(1, 4))
def test_beta_stays_positive_and_rises_exactly_where_the_divergence_is_above_its_target(beta, kl, target, n, ratio):
    new = adapted_beta(beta, kl, target, n * ratio, n)
    assert beta * (1 - 0.2 / ratio) * (1 - 1e-12) <= new <= beta * (1 + 0.2 / ratio) * (1 + 1e-12) and new > 0
    if abs(kl / target - 1) > 1e-9:
        assert (new > beta) == (kl > target)


@pytest.mark.parametrize("begin", [0.001, 0.1, 20.0])
@pytest.mark.parametrize("divergence, solution", [
    (lambda beta: 0.4 / beta, 0.1),  # 0.4 / 0.1 = 4
    (lambda beta: 8 * math.exp(-5 * beta), math.log(2) / 5),  # 8 exp(-5 beta) = 4: 5 beta = ln 2
    (lambda beta: 9 / (1 + 12.5 * beta) ** 2, 0.04)])  # 9 / 1.5^2 = 4
def test_in_a_closed_loop_beta_comes_to_the_coefficient_that_gives_the_target(divergence, solution, begin):
    beta, distances = begin, []
    for _ in range(1500):  # batches of 128 answers
        beta = adapted_beta(beta, divergence(beta), 4.0, 2000, 128)
        distances.append(abs(math.log(beta / solution)))
    assert beta == pytest.approx(solution, rel=1e-4) and divergence(beta) == pytest.approx(4.0, rel=1e-4)
    assert all(later <= before + 1e-9 for before, later in zip(distances, distances[1:]))  # it never swings past


# length


@pytest.mark.parametrize("length, kl, expected", [
    (40, 6.1, 36), (36, 6.1, 32), (32, 6.1, 28), (11, 6.1, 9), (10, 6.1, 9), (9, 6.1, 8), (5, 6.1, 4),  # floor of 0.9 length
    (40, 2.9, 44), (44, 2.9, 49), (11, 2.9, 13), (10, 2.9, 11), (9, 2.9, 10), (50, 2.9, 55),  # ceiling of 1.1 length
    (40, 6.0, 40), (40, 4.0, 40), (40, 3.0, 40)])  # from half the target to the target it stays
def test_answers_become_a_tenth_shorter_above_the_target_and_a_tenth_longer_below_half_of_it(length, kl, expected):
    assert adapted_length(length, kl, 6.0, 1, 1000) == expected


@pytest.mark.parametrize("length, kl, expected", [
    (4, 9.0, 4), (5, 9.0, 4), (40, 0.0, 40), (38, 0.0, 40), (37, 0.0, 40), (36, 0.0, 40),  # 1.1 * 37 = 40.7, 1.1 * 36 = 39.6
    (35, 0.0, 39), (3, 5.0, 4), (50, 5.0, 40)])  # within the interval whatever it was before
def test_length_stays_within_its_bounds(length, kl, expected):
    assert adapted_length(length, kl, 6.0, 4, 40) == expected


@given(st.integers(4, 400), st.integers(1, 40))
def test_length_changes_by_the_next_whole_tenth_and_never_gets_stuck(length, shortest):
    tenth = (length + 9) // 10  # rounded up, in whole numbers
    assert adapted_length(length, 2.0, 1.0, 0, 1000) == length - tenth
    assert adapted_length(length, 0.4, 1.0, 0, 1000) == length + tenth
    steps = 0
    while length > shortest:
        length, before, steps = adapted_length(length, 2.0, 1.0, shortest, 400), length, steps + 1
        assert shortest <= length < before
    assert isinstance(length, int) and steps < 60
    while length < 400:
        length, before = adapted_length(length, 0.4, 1.0, shortest, 400), length
        assert before < length <= 400


# approximate KL


def neighbours(step, size=7, seed=0):
    """The log-probabilities of a distribution and of one that is `step` away from it: two (size,) in fp64."""
    generator = torch.Generator().manual_seed(seed)
    logits, direction = torch.randn(2, size, generator=generator, dtype=torch.float64)
    return logits.log_softmax(-1), (logits + step * direction).log_softmax(-1)


@pytest.mark.parametrize("seed", range(4))
def test_half_the_squared_log_ratio_is_the_divergence_from_old_to_new_to_second_order(seed):
    exact, errors = [], []
    for step in (0.08, 0.04, 0.02):
        old, new = neighbours(step, seed=seed)
        exact.append(divergences(old, new).item())
        errors.append(abs((old.exp() * approximate_kl(new, old)).sum().item() - exact[-1]))  # E over what old draws
    for before, after in zip(exact, exact[1:]):
        assert before / after == pytest.approx(4, rel=0.1)  # half the step, a quarter of the divergence ...
    for before, after in zip(errors, errors[1:]):
        assert before / after > 6.5  # ... and an eighth of the error (or less, where the third order cancels)
    assert errors[-1] < 0.03 * exact[-1]


def test_it_is_never_negative_the_same_both_ways_and_0_only_where_nothing_has_moved():
    old, new = torch.tensor([0.5, 0.5, 0.2, 0.7]).log(), torch.tensor([0.25, 1.0, 0.2, 0.7001]).log()
    ln2 = math.log(2)
    assert approximate_kl(new, old).tolist() == pytest.approx([ln2**2 / 2, ln2**2 / 2, 0.0, 0.0], abs=1e-7)
    assert torch.equal(approximate_kl(new, old), approximate_kl(old, new))
    assert (approximate_kl(new, old) > 0).tolist() == [True, True, False, True]


@pytest.mark.parametrize("seed", range(4))
def test_it_varies_far_less_than_the_log_ratio_whose_mean_is_the_divergence_exactly(seed):
    old, new = neighbours(0.05, seed=seed)
    p = old.exp()

    def variance(x):
        return (p * (x - (p * x).sum()) ** 2).sum().item()

    assert (p * (old - new)).sum().item() == pytest.approx(divergences(old, new).item(), rel=1e-12)
    assert variance(approximate_kl(new, old)) < 0.01 * variance(old - new)


# explained variance


@pytest.mark.parametrize("values, expected", [
    ([0.0, 2.0, 4.0], 1.0),
    ([7.0, 9.0, 11.0], 1.0),  # 7 too high everywhere: the spread is known
    ([5.0, 5.0, 5.0], 0.0),
    ([0.0, 1.0, 2.0], 0.75),  # half of each is left: a quarter of the variance
    ([0.0, -2.0, -4.0], -3.0),  # twice of each is left: four times the variance
    ([0.0, 0.0, 4.0], 2 / 3)])  # left: 0, 2, 0, of variance 4/3 - 4/9 = 8/9: a third of the returns' 8/3
def test_explained_variance_by_hand(values, expected):
    assert explained_variance(torch.tensor(values), torch.tensor([0.0, 2.0, 4.0])) == pytest.approx(expected, abs=1e-6)


def test_explained_variance_is_no_number_where_the_returns_do_not_vary():
    for returns in ([3.0, 3.0, 3.0], [3.0]):
        result = explained_variance(torch.arange(float(len(returns))), torch.tensor(returns))
        assert isinstance(result, float) and math.isnan(result)


# running spread


@given(st.lists(st.lists(FP32, min_size=1, max_size=9), min_size=1, max_size=9))
def test_running_spread_is_that_of_all_numbers_at_once_however_they_come(batches):
    spread = RunningSpread()
    for batch in batches:
        spread.add(torch.tensor(batch))
    numbers = torch.tensor([number for batch in batches for number in batch], dtype=torch.float64)
    assert spread.n == len(numbers)
    assert spread.mean == pytest.approx(numbers.mean().item(), rel=1e-9, abs=1e-9)
    if (numbers != numbers[0]).any():
        assert spread.std == pytest.approx(numbers.std(correction=0).item(), rel=1e-6, abs=1e-9)


def test_running_spread_by_hand_from_single_numbers_and_from_a_matrix():
    spread = RunningSpread()  # 2, 4, 4, 4, 5, 5, 7, 9: mean 5, squares 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, variance 4
    for number in (2.0, 4.0, 4.0, 4.0):
        spread.add(torch.tensor(number))
    assert (spread.n, spread.mean) == (4, 3.5) and spread.std == pytest.approx(math.sqrt(0.75))
    spread.add(torch.tensor([[5.0, 5.0], [7.0, 9.0]]))
    assert (spread.n, spread.mean, spread.std) == (8, 5.0, 2.0)


@given(FP32, st.lists(st.integers(1, 5), max_size=4))
def test_the_spread_is_1_before_any_number_and_while_all_are_the_same(number, sizes):
    spread = RunningSpread()
    assert spread.std == 1.0
    for size in sizes:
        spread.add(torch.full((size,), number))
        assert spread.std == 1.0
    spread.add(torch.tensor([number, number + 1.0, number + 2.0]))
    assert spread.std < 1.0  # of three or more numbers, from 0 to 2 apart: at most sqrt(2/3)


def test_a_small_spread_around_a_large_mean_is_not_rounded_away():
    spread = RunningSpread()  # the mean of squares less the square of the mean would leave nothing in fp32
    for _ in range(50):
        spread.add(torch.tensor([100_000.0, 100_000.5]))
    assert spread.std == pytest.approx(0.25, rel=1e-9)


def test_a_resumed_spread_goes_on_from_what_was_saved():
    whole, first = RunningSpread(), RunningSpread()
    early, late = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    first.add(early)
    again = RunningSpread(**dataclasses.asdict(first))
    again.add(late)
    for part in (early, late):
        whole.add(part)
    assert again == whole and again.std == pytest.approx(torch.cat([early, late]).double().std(correction=0).item())
