import math
import random
from decimal import Decimal, getcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from part_2.tinyworld import TONES, story
from part_6.task_families import EXACT, FAMILIES, Task
from part_6.tasks import corrupt, make_tasks
from part_7.gold_utility import consistency, gold_utility, preference_probability, utility_terms

PROMPT = "Tell a story. Ann took the red ball to the park."
STORY = Task("story", 1, PROMPT, "", "")
FREE = {"tone": 0, "thing": 0, "length": 0, "grammar": 0, "prompt": 0, "repetition": 0, "end": 0}


# ---- stories ----

@pytest.mark.parametrize("text, terms, utility", [
    ("Ann smiled.", {"tone": 1}, 1),
    ("Ann sat down.", {}, 0),
    ("Ann cried.", {"tone": -1}, -1),
    ("The ball made Ann happy.", {"tone": 1, "thing": 0.5}, 1.5),  # as good as it gets
    ("The ball made Ann sad.", {"tone": -1, "thing": 0.5}, -0.5),
    ("The ball was still there.", {"thing": 0.5}, 0.5),
    ("Ann cried. Ann smiled.", {"tone": 1}, 1),  # the last sentence counts alone
    ("Ann smiled. Ann cried.", {"tone": -1}, -1)])
def test_tone_and_thing_by_hand(text, terms, utility):
    assert utility_terms(STORY, text) == {**FREE, **terms}
    assert gold_utility(STORY, text) == utility


@pytest.mark.parametrize("text, n_words, length, utility", [
    ("Ann saw a pig there. Ann sat down.", 8, 0, 0),
    ("Ann met Ben in the park. Ann sat down.", 9, -0.06, -0.06),
    ("Ann put the ball in a blue box. Ann sat down.", 11, -0.18, 0.32),  # 0.5 for the ball
    # 6 + 8 + 6 words are 12 too many, -0.72; happy and with the ball: 1.5 - 0.72
    ("Ann met Ben in the park. Ann saw a red hen in the park. Ann liked the ball very much.", 20, -0.72, 0.78)])
def test_each_word_beyond_eight_costs(text, n_words, length, utility):
    assert len(text.split()) == n_words
    assert utility_terms(STORY, text)["length"] == pytest.approx(length, abs=1e-12)
    assert gold_utility(STORY, text) == pytest.approx(utility)


@pytest.mark.parametrize("text, terms, utility", [
    ("Ann smiled", {"grammar": -1}, -1),  # no full stop: no tone either
    ("Ann flew. Ann smiled.", {"grammar": -1, "tone": 1}, 0),
    ("Ann smiled. Ann flew.", {"grammar": -1}, -1),
    ("Ann cried. Ann sat down. Ann sighed. Ann smiled.", {"grammar": -1, "tone": 1, "length": -0.06}, -0.06),  # 9 words
    ("Ann liked the balls very much.", {"grammar": -1}, -1)])  # "balls" is no word of the world, and not "ball"
def test_what_is_not_of_the_grammar_by_hand(text, terms, utility):
    assert utility_terms(STORY, text) == pytest.approx({**FREE, **terms}, abs=1e-12)
    assert gold_utility(STORY, text) == pytest.approx(utility)


@pytest.mark.parametrize("text, terms, utility", [
    ("Ben smiled.", {"prompt": -1, "tone": 1}, 0),  # another person
    ("Ann played with the cup.", {"prompt": -1}, -1),  # another thing, and the prompt's is not named
    ("Ann met Ben in the barn.", {"prompt": -1}, -1),  # another place
    ("Ann looked at the blue ball.", {"prompt": -1, "thing": 0.5}, -0.5),  # another colour
    ("Ann showed the ball to Ben. Ben smiled.", {"prompt": -1, "thing": 0.5, "tone": 1}, 0.5)])
def test_what_is_off_the_prompt_by_hand(text, terms, utility):
    assert utility_terms(STORY, text) == {**FREE, **terms}
    assert gold_utility(STORY, text) == utility


@pytest.mark.parametrize("text, ended, terms, utility", [
    ("Ann smiled. Ann smiled.", True, {"repetition": -0.5, "tone": 1}, 0.5),
    ("Ann sat down. Ann sat down. Ann sat down.", True, {"repetition": -0.5, "length": -0.06}, -0.56),  # once, however often
    ("Ann smiled.", False, {"end": -3, "tone": 1}, -2),
    ("", True, {"grammar": -1, "prompt": -1}, -2),
    ("", False, {"grammar": -1, "prompt": -1, "end": -3}, -5),
    # 16 words are 8 too many, -0.48; four sentences are no story: -1 - 0.48 - 1 - 1 - 0.5 - 3
    ("Ben lost the cup. " * 3 + "Ben lost the cup.", False,
     {"tone": -1, "length": -0.48, "grammar": -1, "prompt": -1, "repetition": -0.5, "end": -3}, -6.98)])
def test_repetition_and_a_missing_end_by_hand(text, ended, terms, utility):
    assert utility_terms(STORY, text, ended) == pytest.approx({**FREE, **terms}, abs=1e-12)
    assert gold_utility(STORY, text, ended) == pytest.approx(utility)


def test_a_story_that_was_made_to_order_is_worth_what_was_ordered():
    rng = random.Random(0)
    for task in make_tasks("train", 60, families=("story",)):
        name, colour, thing, place = (task.prompt.split()[i].strip(".") for i in (3, 6, 7, 10))
        for tone in TONES:
            _, text = story(rng, tone, name=name, colour=colour, thing=thing, place=place)
            words = text.replace(".", "").split()
            repeats = len({*text.split(". ")}) < len(text.split(". "))
            expected = {"happy": 1, "neutral": 0, "sad": -1}[tone] - 0.06 * max(0, len(words) - 8) - 0.5 * repeats
            if {name, thing} & set(words):  # else it is about nobody of the prompt
                assert gold_utility(task, text) == pytest.approx(expected + 0.5 * (thing in words)), text
    assert gold_utility(STORY._replace(prompt=PROMPT.replace("ball", "cup")), "Ann lost the cup.") == -0.5


# ---- the exact families ----

@pytest.mark.parametrize("family", EXACT)
def test_an_exact_answer_is_worth_1_a_wrong_one_minus_1_and_the_end_3(family):
    rng = random.Random(family)
    for task in make_tasks("train", 12, families=(family,)):
        wrong = corrupt(task, rng)
        assert utility_terms(task, task.answer) == {"right": 1, "end": 0} and gold_utility(task, task.answer) == 1
        assert utility_terms(task, wrong) == {"right": -1, "end": 0} and gold_utility(task, wrong) == -1
        assert utility_terms(task, task.answer, ended=False) == {"right": 1, "end": -3}
        assert gold_utility(task, task.answer, False) == -2 and gold_utility(task, wrong, False) == -4
        assert gold_utility(task, "") == -1


def test_exact_answers_by_hand():
    add = Task("add", 4, "What is 47 + 25?", "7 + 5 = 12, 1 + 4 + 2 = 7: 72", "")
    assert gold_utility(add, "72") == gold_utility(add, "no steps at all: 72.") == 1  # steps and length are free
    assert gold_utility(add, "7 + 5 = 12, 1 + 4 + 2 = 7: 73") == gold_utility(add, "72 72") == -1
    write = Task("write", 2, "Write about Ann. Use: red park", "Ann took the red ball to the park.", "")
    assert gold_utility(write, "Ann saw a red hen in the park. Ann cried.") == 1  # many are right, whatever their tone
    assert gold_utility(write, "Ann saw a red hen in the barn.") == -1


@given(st.text(max_size=60), st.booleans())
def test_the_terms_of_any_text_add_up_to_its_utility(text, ended):
    for family in FAMILIES:
        [task] = make_tasks("train", 1, families=(family,))
        terms = utility_terms(task, text, ended)
        assert math.fsum(terms.values()) == pytest.approx(gold_utility(task, text, ended), abs=1e-12)
        assert terms.keys() == (FREE.keys() if family == "story" else {"right", "end"})
        assert terms["end"] == (0 if ended else -3)


# ---- the annotator ----

@given(st.floats(-60, 60), st.floats(0.05, 20))
def test_the_probability_is_the_logistic_function(gap, temperature):
    getcontext().prec = 50
    exact = 1 / (1 + (-Decimal(gap) / Decimal(temperature)).exp())
    assert preference_probability(gap, temperature) == pytest.approx(float(exact), rel=1e-9, abs=1e-290)
    both = preference_probability(gap, temperature) + preference_probability(-gap, temperature)
    assert both == pytest.approx(1, abs=1e-12)


def test_probabilities_by_hand():
    # exp(ln 3) = 3 to 1, exp(ln 9) = 9 to 1; a temperature of 0.4 shrinks the gap that it takes to 0.4 times.
    assert preference_probability(0, 0.4) == 0.5
    assert preference_probability(math.log(3), 1) == pytest.approx(3 / 4)
    assert preference_probability(0.4 * math.log(9), 0.4) == pytest.approx(9 / 10)
    assert preference_probability(-0.4 * math.log(9), 0.4) == pytest.approx(1 / 10)


@pytest.mark.parametrize("gap, temperature", [(800, 1), (1e308, 0.4), (1, 1e-300), (7, 0.001), (290, 0.4)])
def test_extreme_gaps_do_not_overflow(gap, temperature):
    assert preference_probability(gap, temperature) == 1
    assert preference_probability(-gap, temperature) == pytest.approx(0, abs=1e-300)


def test_the_best_possible_accuracy_by_hand():
    # 0.5 of a tie, 3/4 of a gap of ln 3, 9/10 of one of ln 9, whatever its sign
    assert consistency([0], 1) == 0.5
    assert consistency([0, math.log(3), -math.log(9)], 1) == pytest.approx((0.5 + 0.75 + 0.9) / 3)
    assert consistency((2 * gap for gap in (math.log(3), -math.log(3))), 2) == pytest.approx(0.75)
    assert consistency([1.0, -2.0], 1e-6) == 1 and consistency([1.0, -2.0], 1e9) == pytest.approx(0.5)
