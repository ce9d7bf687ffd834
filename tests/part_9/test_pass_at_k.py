"""Lesson 9.5: pass@k, against every choice of k answers out of n."""

import itertools
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_6.prompt_template import END, encode_prompt
from part_6.tasks import make_tasks, verify
from part_9 import pass_at_k as module
from part_9.pass_at_k import count_right, pass_at_k
from tests.part_8.tiny_stages import TOKENIZER, tiny_model

END_ID = TOKENIZER.special_ids[END]


@pytest.mark.parametrize("n", range(1, 8))
def test_it_is_the_share_of_all_choices_that_hold_a_right_answer(n):
    for c, k in itertools.product(range(n + 1), range(1, n + 1)):
        choices = list(itertools.combinations([i < c for i in range(n)], k))
        assert pass_at_k(n, c, k) == pytest.approx(statistics.fmean(map(any, choices)), abs=1e-12)


@pytest.mark.parametrize("n, c, k, expected", [
    (4, 1, 1, 1 / 4), (4, 1, 2, 1 / 2), (4, 2, 2, 5 / 6), (4, 3, 2, 1.0), (5, 0, 5, 0.0), (5, 5, 1, 1.0), (1, 0, 1, 0.0),
    (10, 3, 5, 11 / 12),  # 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252
    (1000, 1, 500, 0.5), (10**5, 10, 1, 1e-4)])
def test_numbers_worked_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, rel=1e-12)


def test_it_is_unbiased_where_taking_the_share_of_right_answers_for_their_chance_is_not():
    # n = 5 answers, each right with p = 0.3: averaged over all outcomes pass@3 is 1 - 0.7^3.
    p, n, k = 0.3, 5, 3
    outcomes = [(sum(right), p**sum(right) * (1 - p)**(n - sum(right))) for right in itertools.product((0, 1), repeat=n)]
    assert sum(weight * pass_at_k(n, c, k) for c, weight in outcomes) == pytest.approx(1 - 0.7**3, abs=1e-12)
    assert sum(weight * (1 - (1 - c / n)**k) for c, weight in outcomes) < 1 - 0.7**3 - 0.01


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 300), st.data())
def test_more_tries_and_more_right_answers_never_hurt(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n - 1))
    here = pass_at_k(n, c, k)
    assert 0 <= here <= pass_at_k(n, c, k + 1) <= 1
    assert c == n or here <= pass_at_k(n, c + 1, k)
    assert (here == 0) == (c == 0) and (here == 1 or n - c >= k)
    assert pass_at_k(n, c, 1) == pytest.approx(c / n, rel=1e-9)


@pytest.mark.parametrize("n, c, k", [(4, 1, 0), (4, 1, 5), (4, 5, 1), (4, -1, 1), (0, 0, 0), (0, 0, 1), (4, 1, -1)])
def test_what_has_no_meaning_is_refused_with_its_values(n, c, k):
    with pytest.raises(ValueError, match=f"k {k}, n {n}, c {c}$"):
        pass_at_k(n, c, k)


def test_right_answers_that_ended_are_counted_for_their_own_task(monkeypatch):
    tasks = make_tasks("test", 3, 0, ("add", "count"))
    right = [task.answer for task in tasks]
    answers = [(right[0], True), (right[0], False), ("nothing", True), (right[1], True),  # 1 that ended
               (right[1], True), (right[1], True), (right[1], True), (right[1], True),  # all
               ("no", True), (right[0], True), ("no", False), ("", True)]  # none: the second is another task's
    asked = []

    def answer(model, tokenizer, prompts, temperature, n_new, seed):
        asked.append((model, tokenizer, prompts, temperature, n_new, seed))
        return answers

    monkeypatch.setattr(module, "answer", answer)
    assert verify(tasks[0], right[0]) and not verify(tasks[0], right[1]) and not verify(tasks[2], right[0])
    assert count_right("model", "tokenizer", tasks, 4, n_new=7, seed=3) == [1, 4, 0]
    assert asked == [("model", "tokenizer", [task.prompt for task in tasks for _ in range(4)], 1.0, 7, 3)]


def test_samples_are_drawn_from_the_model_at_temperature_1():
    # How often a model says the right digit alone, against its own probability of that digit and then the end token.
    [task], model, n = make_tasks("test", 1, 0, ("count",), (1,)), tiny_model(), 600
    [digit] = TOKENIZER.encode(task.answer.rsplit(":", 1)[1].strip())
    ids = torch.tensor([[*encode_prompt(task.prompt, TOKENIZER), digit]])
    with torch.no_grad():
        hidden = model.hidden_states(ids)[0, -2:]
        for token, direction in zip((digit, END_ID), hidden):  # both are made likely: logits of 7
            model.head.weight[token] += 7 * direction / direction.square().sum()
        p = model(ids)[0].softmax(-1)
    expected = (p[-2, digit] * p[-1, END_ID]).item()
    assert 0.2 < expected < 0.8
    [count] = count_right(model, TOKENIZER, [task], n, n_new=2, seed=5)
    assert abs(count - n * expected) <= 4 * (n * expected * (1 - expected)) ** 0.5
