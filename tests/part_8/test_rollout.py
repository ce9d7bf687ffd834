"""Lesson 8.4: rollouts, against a slow loop that samples without a cache, and against masks worked by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_0.cli import InputError
from part_6.prompt_template import END, encode_prompt
from part_8.rollout import Rollout, as_rollout, collect
from tests.part_8.tiny_stages import TOKENIZER, tiny_model

PROMPTS = [encode_prompt(text, TOKENIZER) for text in
           ("What is 2 + 3?", "hi", "Tell a story. Tom took the red cup to the barn.", "Sort: red cup")]
UNUSED = 10**6  # a stop id that no model can draw
ANSWERS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=4)


def decided_model(**changes):
    """A tiny model whose distributions are far from uniform, and differ between prompts."""
    model = tiny_model(**changes)
    with torch.no_grad():
        for weight in (*model.blocks.parameters(), model.head.weight):
            if weight.ndim == 2:
                weight.mul_(20)
    return model


@torch.no_grad()
def slow_answer(model, prompt, n_new, stop_ids, temperature, generator=None):
    """An answer, token by token, everything computed anew each time; the best token where there is no generator."""
    answer = []
    while len(answer) < n_new and not (answer and answer[-1] in stop_ids):
        logits = model(torch.tensor([prompt + answer]))[0, -1] / temperature
        new = logits.argmax() if generator is None else torch.multinomial(logits.softmax(0), 1, generator=generator)
        answer.append(new.item())
    return answer


def freely(model, n_new=8):
    """What the model says of each prompt when nothing stops it, its best token each time."""
    return [slow_answer(model, prompt, n_new, (), 1.0) for prompt in PROMPTS]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("prompt", PROMPTS[:2])
def test_one_prompt_is_answered_as_by_a_slow_loop_with_the_same_generator(prompt, temperature):
    model = decided_model()
    rollout = collect(model, [prompt], 9, (UNUSED,), temperature, generator=torch.Generator().manual_seed(3))
    expected = slow_answer(model, prompt, 9, (), temperature, torch.Generator().manual_seed(3))
    assert rollout.answers() == [expected] and len(set(expected)) > 3
    assert rollout.tokens.tolist() == [prompt + expected]


def test_several_answers_to_a_prompt_stand_side_by_side():
    model = decided_model()
    rollout = collect(model, PROMPTS, 8, (UNUSED,), 1.0, generator=torch.Generator().manual_seed(3), n_samples=3)
    assert len({tuple(answer) for answer in rollout.answers()}) > 6
    for row, ids in enumerate(rollout.tokens.tolist()):
        assert ids[:len(PROMPTS[row // 3])] == PROMPTS[row // 3]
        assert rollout.mask[row].nonzero()[0] == len(PROMPTS[row // 3]) - 1
    best = collect(model, PROMPTS, 8, (UNUSED,), 1e-4, n_samples=2).answers()
    assert best == [answer for answer in freely(model) for _ in range(2)]


def test_the_generator_decides_what_is_drawn():
    model = decided_model()
    draws = [collect(model, PROMPTS, 8, (UNUSED,), generator=torch.Generator().manual_seed(seed)).answers()
             for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"n_kv_head": 1}])
def test_prompts_of_unlike_lengths_in_one_batch_are_each_answered_as_alone(changes):
    model = decided_model(**changes)
    expected = freely(model)
    assert collect(model, PROMPTS, 8, (UNUSED,), temperature=1e-4).answers() == expected
    assert collect(model, PROMPTS, 8, (UNUSED,), top_k=1).answers() == expected
    assert collect(model, PROMPTS, 8, (UNUSED,), top_p=1e-9).answers() == expected


def test_each_row_stops_at_its_own_end_token_which_is_part_of_the_answer():
    model = decided_model()
    said = freely(model)
    end = said[0][3]  # of the others most never say it, or elsewhere
    expected = [answer[:answer.index(end) + 1] if end in answer else answer for answer in said]
    rollout = collect(model, PROMPTS, 8, (end,), temperature=1e-4)
    assert rollout.answers() == expected and len(set(map(len, expected))) > 1
    assert rollout.ended.tolist() == [end in answer for answer in said]


def test_another_special_token_ends_an_answer_but_not_as_it_should():
    model = decided_model()
    said = freely(model)[:2]
    other = next(id for id in said[0][1:] if id not in said[1])
    end = next(id for id in said[1][1:] if id not in said[0])
    rollout = collect(model, PROMPTS[:2], 8, (end, other), temperature=1e-4)
    assert rollout.answers() == [said[0][:said[0].index(other) + 1], said[1][:said[1].index(end) + 1]]
    assert rollout.ended.tolist() == [False, True]


def test_an_answer_that_is_cut_off_has_not_ended_but_one_whose_last_token_is_the_end_has():
    model = decided_model()
    said = freely(model)
    place = next(i for i in range(1, 8) if said[0][i] not in said[0][:i])
    end = said[0][place]
    assert collect(model, PROMPTS[:1], place, (end,), temperature=1e-4).ended.tolist() == [False]
    assert collect(model, PROMPTS[:1], place + 1, (end,), temperature=1e-4).ended.tolist() == [True]


def test_an_answer_that_is_its_end_token_alone_is_one_choice():
    model = decided_model()
    end = freely(model)[0][0]
    rollout = collect(model, PROMPTS[:1], 8, (end,), temperature=1e-4)
    assert rollout.answers() == [[end]] and rollout.ended.tolist() == [True]
    assert rollout.mask.tolist() == [[False] * (len(PROMPTS[0]) - 1) + [True]]


def test_a_rollout_worked_by_hand():
    # row 0: prompt 5 6 7, answer 1 2; row 1: prompt 8, answer 9 4 9 2, its last token the end; row 2: cut off
    rollout = as_rollout([[5, 6, 7], [8], [3, 3]], [[1, 2], [9, 4, 9, 2], [1]], end=2)
    assert rollout.tokens.tolist() == [[5, 6, 7, 1, 2], [8, 9, 4, 9, 2], [3, 3, 1, 0, 0]]
    assert rollout.positions.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, -1, -1]]
    assert rollout.mask.int().tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 0, 0]]
    assert rollout.ended.tolist() == [True, True, False]
    assert (rollout.tokens.dtype, rollout.mask.dtype, rollout.ended.dtype) == (torch.int64, torch.bool, torch.bool)


def test_an_end_token_within_a_prompt_or_answer_does_not_end_it():
    rollout = as_rollout([[2, 5, 2], [2]], [[2, 1], [1, 2]], end=2)
    assert rollout.ended.tolist() == [False, True] and rollout.answers() == [[2, 1], [1, 2]]


@given(answers=ANSWERS, data=st.data())
def test_answers_come_back_as_they_went_in_and_the_mask_covers_them_and_nothing_else(answers, data):
    prompts = [data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=5)) for _ in answers]
    rollout = as_rollout(prompts, answers, end=9)
    assert rollout.answers() == answers
    for row, (prompt, answer) in enumerate(zip(prompts, answers)):
        covered = [t + 1 for t in range(rollout.mask.shape[1]) if rollout.mask[row, t]]  # places of tokens
        assert covered == list(range(len(prompt), len(prompt) + len(answer)))
        length = len(prompt) + len(answer)
        assert rollout.tokens[row, :length].tolist() == prompt + answer
        assert rollout.positions[row].tolist() == [*range(length), *[-1] * (rollout.tokens.shape[1] - length)]
        assert rollout.ended[row] == (answer[-1] == 9)


@pytest.mark.parametrize("rows", [torch.tensor([2, 0]), torch.tensor([True, False, True])])
def test_selected_rows_are_whole_rows_in_the_order_asked_for(rows):
    prompts, answers = [[5, 6, 7], [8], [3, 3]], [[1, 2], [9, 4, 9, 2], [1]]
    part = as_rollout(prompts, answers, end=2).select(rows)
    order = rows.nonzero()[:, 0].tolist() if rows.dtype == torch.bool else rows.tolist()
    assert isinstance(part, Rollout) and part.answers() == [answers[i] for i in order]
    assert part.ended.tolist() == [answers[i][-1] == 2 for i in order]
    for row, i in enumerate(order):
        assert part.tokens[row][part.positions[row] >= 0].tolist() == prompts[i] + answers[i]


@pytest.mark.parametrize("changes", [{}, {"positions": "learned"}, {"positions": "sinusoidal"}, {"window": 4}])
def test_the_pass_that_scores_sees_each_state_as_the_cache_saw_it(changes):
    # sampling pads on the left, scoring on the right: what was the best token there must be the best token here
    model = decided_model(**changes)
    rollout = collect(model, PROMPTS, 8, (UNUSED,), temperature=1e-4)
    with torch.no_grad():
        best = model(rollout.tokens)[:, :-1].argmax(-1)
    assert torch.equal(best[rollout.mask], rollout.tokens[:, 1:][rollout.mask])


def test_a_policy_in_training_mode_answers_without_dropout_and_stays_in_it():
    model = decided_model(dropout=0.5).train()
    draws = [collect(model, PROMPTS, 6, (UNUSED,), temperature=1e-4).answers() for _ in range(2)]
    assert draws[0] == draws[1] and model.training


def test_prompts_that_hold_nothing_are_refused():
    with pytest.raises(InputError, match="at least one token"):
        collect(decided_model(), [[1], []], 4, (TOKENIZER.special_ids[END],))
