"""Lesson 6.3: what a step may draw, against brute-force ranks and the published formula; what it depends on."""

import numpy as np
import pytest
import torch

from part_6.curriculum import CURRICULA, competence, draw_batch

N = 60
DIFFICULTIES = [1 + i % 6 for i in range(N)]  # ten examples of each
LENGTHS = [(i * 37) % N for i in range(N)]  # a permutation: no ties


@pytest.mark.parametrize("kind", CURRICULA)
def test_a_batch_is_a_function_of_its_arguments_alone(kind):
    def draw(step):
        return draw_batch(kind, DIFFICULTIES, LENGTHS, 3, step, 100, 8).tolist()

    forwards = [draw(step) for step in range(20)]
    np.random.seed(5)  # no global generator has a say, ...
    torch.manual_seed(5)
    state = np.random.get_state()[1].copy()
    assert [draw(step) for step in reversed(range(20))] == forwards[::-1]
    assert (np.random.get_state()[1] == state).all()  # ... and none is moved
    assert len({tuple(batch) for batch in forwards}) == 20  # each step has its own
    assert all(len(set(batch)) == 8 for batch in forwards)
    assert draw_batch(kind, DIFFICULTIES, LENGTHS, 4, 0, 100, 8).tolist() != forwards[0]


def test_uniform_sees_each_example_once_an_epoch_and_leaves_the_remainder_to_the_next():
    epochs = [[i for step in range(7) for i in draw_batch("uniform", DIFFICULTIES, LENGTHS, 0, 7 * epoch + step, 999, 8)]
              for epoch in range(2)]  # 7 batches of 8 are 56 of 60
    assert all(len(set(epoch)) == 56 for epoch in epochs) and epochs[0] != epochs[1]
    whole = [i for step in range(6) for i in draw_batch("uniform", DIFFICULTIES, LENGTHS, 0, step, 999, 10)]
    assert sorted(whole) == list(range(N))


def test_competence_is_that_of_platanios_et_al():
    # sqrt(t (1 - c0^2) / T + c0^2): c0 = 0.1, T = 50 steps of 100. 0 -> 0.1; 25 -> sqrt(0.99 / 2 + 0.01); 50 -> 1; then 1
    assert [competence(step, 100) for step in (0, 25, 50, 99)] == pytest.approx([0.1, 0.505**0.5, 1.0, 1.0])
    assert competence(10, 40, start=0.5, pace=1.0) == pytest.approx((0.25 + 0.75 / 4) ** 0.5)


@pytest.mark.parametrize("kind, rank", [("easy_first", DIFFICULTIES), ("short_first", LENGTHS),
                                        ("hard_first", [-difficulty for difficulty in DIFFICULTIES])])
@pytest.mark.parametrize("step", [0, 10, 30, 50, 99])
def test_a_step_draws_from_the_first_share_of_the_ranking_and_from_all_of_it(kind, rank, step):
    # Many seeds: of examples that are equally hard any may be in, so the ranks that come up are those of a brute-force sort.
    n_in = max(6, round(competence(step, 100) * N))
    allowed = sorted(rank)[:n_in]
    drawn = {i for seed in range(300) for i in draw_batch(kind, DIFFICULTIES, LENGTHS, seed, step, 100, 6)}
    assert {rank[i] for i in drawn} == set(allowed)
    for seed in range(3):  # one seed: no more than n_in different examples over all draws that could be made at this share
        batch = draw_batch(kind, DIFFICULTIES, LENGTHS, seed, step, 100, n_in)
        assert sorted(rank[i] for i in batch) == allowed


def test_draws_are_uniform_within_the_share():
    # At step 50 of 100 all 60 are in. 2,000 batches of 6: each example is expected 200 times; chi-square with 59 degrees of
    # freedom has mean 59 and standard deviation 10.9 (less here, where none comes twice in a batch).
    counts = np.zeros(N)
    for seed in range(2000):
        counts[draw_batch("easy_first", DIFFICULTIES, LENGTHS, seed, 50, 100, 6)] += 1
    assert counts.sum() == 12000 and ((counts - 200) ** 2 / 200).sum() < 59 + 5 * 10.9


@pytest.mark.parametrize("kind", ["easy_first", "short_first", "hard_first"])
def test_what_is_in_once_stays_in_for_the_rest_of_the_run(kind):
    def share(step):  # a batch of all that is in
        n_in = max(6, round(competence(step, 100) * N))
        return set(draw_batch(kind, DIFFICULTIES, LENGTHS, 3, step, 100, n_in).tolist())

    shares = [share(step) for step in range(0, 60, 5)]
    assert all(earlier <= later for earlier, later in zip(shares, shares[1:])) and shares[0] < shares[-1] == set(range(N))
    assert set(draw_batch(kind, DIFFICULTIES, LENGTHS, 3, 20, 100, 6).tolist()) <= share(20)


def test_each_step_of_one_run_draws_anew_when_all_are_in():
    # As above, over the steps 50 to 2,049 of a single seed instead of over seeds.
    batches = [draw_batch("hard_first", DIFFICULTIES, LENGTHS, 7, step, 100, 6) for step in range(50, 2050)]
    counts = np.bincount(np.concatenate(batches), minlength=N)
    assert ((counts - 200) ** 2 / 200).sum() < 59 + 5 * 10.9
    assert len({tuple(batch) for batch in batches}) > 1990  # of 60 * 59 * ... * 55 possible ones


@pytest.mark.parametrize("kind", CURRICULA)
def test_every_seed_that_a_flag_can_hold_is_one(kind):
    drawn = {tuple(draw_batch(kind, DIFFICULTIES, LENGTHS, seed, 60, 100, 6)) for seed in (-2**63, -1, 0, 1, 2**63 - 1)}
    assert len(drawn) == 5


def test_ties_enter_in_an_order_that_the_seed_decides():
    # At step 0 six of the ten easiest are in, the same ones for one seed; over seeds each of the ten.
    firsts = [frozenset(draw_batch("easy_first", DIFFICULTIES, LENGTHS, seed, 0, 100, 6).tolist()) for seed in range(60)]
    assert set().union(*firsts) == {i for i in range(N) if DIFFICULTIES[i] == 1} and len(set(firsts)) > 20


@pytest.mark.parametrize("kind, batch_size, message", [("random", 8, "random"), ("uniform", 61, "61.*60"),
                                                       ("uniform", 0, "0")])
def test_what_cannot_be_drawn_is_refused(kind, batch_size, message):
    with pytest.raises(ValueError, match=message):
        draw_batch(kind, DIFFICULTIES, LENGTHS, 0, 0, 100, batch_size)
