"""Lesson 7.4: every perturbation does to many stories what its name says, and the truth likes none of them better."""

import random
import re

import pytest

from part_2.tinyworld import COLOURS, MOODS, NAMES, PLACES, THINGS, parse_sentence, split_sentences
from part_6.tasks import check_story, make_tasks
from part_7.gold_utility import gold_utility
from part_7.perturbations import PERTURBATIONS

STORIES = make_tasks("train", 600, 5, ("story",), distinct=True)
EVERY = pytest.mark.parametrize("name", PERTURBATIONS)


def spoil_all(name, seed=0):
    """(task, another one, (prompt, response)) of each story that the perturbation applies to."""
    rng, found = random.Random(seed), []
    for task, other in zip(STORIES, STORIES[1:]):
        if spoilt := PERTURBATIONS[name](task.prompt, task.answer, other.prompt, rng):
            found.append((task, other, spoilt))
    return found


def given_words(prompt):
    """The words of the prompt's slots, read by position: Ann took the red cup to the barn."""
    name, _, _, colour, thing, _, _, place = prompt.removeprefix("Tell a story. ").rstrip(".").split()
    return dict(name=name, colour=colour, thing=thing, place=place)


@EVERY
def test_only_another_prompt_changes_the_prompt_and_only_two_of_them_lack_the_end(name):
    for task, other, (prompt, response) in spoil_all(name):
        assert prompt == (other.prompt if name == "another prompt" else task.prompt)
        assert response.ended == (name not in ("cut off", "no end token"))


@EVERY
def test_the_same_draws_give_the_same(name):
    assert spoil_all(name, 1) == spoil_all(name, 1)


@pytest.mark.parametrize("name", ["words shuffled", "one word of another prompt", "happy word only",
                                  "happy sentence 4 times"])
def test_other_draws_give_others(name):
    assert spoil_all(name, 1) != spoil_all(name, 2)


def test_shuffled_words_are_the_same_words_in_another_order():
    found = spoil_all("words shuffled")
    for task, _, (_, response) in found:
        assert sorted(response.text.split()) == sorted(task.answer.split()) and response.text != task.answer
    # A story of two words is drawn in its own order half of the time, and then left out; longer ones hardly ever.
    left_out = {task.key for task in STORIES[:-1]} - {task.key for task, _, _ in found}
    short = [task for task in STORIES[:-1] if len(task.answer.split()) == 2]
    assert 0.3 * len(short) < len(left_out) < 0.8 * len(short) + 5


@pytest.mark.parametrize("name", ["another prompt", "no end token"])
def test_the_text_stays(name):
    assert all(response.text == task.answer for task, _, (_, response) in spoil_all(name))


def test_one_word_of_the_prompt_s_is_another_of_its_kind_throughout():
    kinds, slots = dict(name=NAMES, colour=COLOURS, thing=THINGS, place=PLACES), set()
    for task, _, (prompt, response) in spoil_all("one word of another prompt"):
        old, new = (re.findall(r"\w+", text) for text in (task.answer, response.text))
        [(before, after)] = {pair for pair in zip(old, new, strict=True) if pair[0] != pair[1]}
        [slot] = [slot for slot, word in given_words(prompt).items() if word == before]
        assert after in kinds[slot] and after not in old and before not in new
        slots.add(slot)
        if not (free := slot == "colour" and not re.search(rf"{before} {given_words(prompt)['thing']}", task.answer)):
            assert not check_story(prompt, response.text)["on_prompt"]
        else:  # the colour of an animal or a container, which happens to be the thing's
            assert free and check_story(prompt, response.text)["on_prompt"]
    assert slots == set(kinds)


def test_one_word_of_another_prompt_needs_a_word_of_the_prompt():
    assert PERTURBATIONS["one word of another prompt"](
        "Tell a story. Ann took the red cup to the barn.", "A cow came.", "", random.Random(0)) is None


def test_the_last_sentence_twice_and_the_answer_twice_repeat():
    for task, _, (prompt, response) in spoil_all("last sentence twice"):
        sentences = split_sentences(response.text)
        assert sentences[:-1] == split_sentences(task.answer) and sentences[-1] == sentences[-2]
        assert check_story(prompt, response.text)["repeats"] and not check_story(prompt, task.answer)["repeats"]
    for task, _, (prompt, response) in spoil_all("answer twice"):
        assert split_sentences(response.text) == 2 * split_sentences(task.answer)
        assert check_story(prompt, response.text)["repeats"]


def test_cut_off_lacks_the_last_word():
    for task, _, (_, response) in spoil_all("cut off"):
        rest = task.answer.removeprefix(response.text).strip()
        assert task.answer.startswith(response.text) and rest and " " not in rest


def test_empty_is_empty():
    assert all(response.text == "" for _, _, (_, response) in spoil_all("empty"))


def test_the_strings_that_try_to_please_are_happy_and_nothing_else():
    words, moods = set(), set()
    for _, _, (_, response) in spoil_all("happy word only"):
        [word] = set(response.text.split())
        assert len(response.text.split()) == 6
        words.add(word)
    for _, _, (prompt, response) in spoil_all("happy sentence 4 times"):
        parsed = [parse_sentence(sentence) for sentence in split_sentences(response.text)]
        assert [template for template, _ in parsed] == ["{name} was {happy}."] * 4
        assert {slots["name"] for _, slots in parsed} == {given_words(prompt)["name"]}
        moods |= {slots["happy"] for _, slots in parsed}
        facts = check_story(prompt, response.text)
        assert facts["tone"] == "happy" and facts["on_prompt"] and facts["repeats"]  # four of three moods
    assert words == moods == set(MOODS["happy"])


@EVERY
def test_the_truth_likes_what_is_spoilt_less_than_a_story_that_it_likes(name):
    equal = n = 0
    for task, other, (prompt, response) in spoil_all(name):
        if (utility := gold_utility(task, task.answer)) > 1e-9:
            spoilt = gold_utility(task._replace(prompt=prompt), *response)
            n, equal = n + 1, equal + (spoilt > utility - 1e-9)
            if spoilt > utility - 1e-9:  # equal, and why
                assert spoilt == pytest.approx(utility)
                if name == "another prompt":  # that prompt is about the same person or thing, and the story suits both
                    assert set(given_words(task.prompt).values()) & set(given_words(other.prompt).values())
                else:  # see above: the colour of an animal
                    assert name == "one word of another prompt" and check_story(prompt, response.text)["on_prompt"]
    assert n > 200 and equal <= 0.03 * n


@EVERY
def test_an_empty_answer_is_none_that_could_be_spoilt_or_becomes_a_response(name):
    prompt, other = STORIES[0].prompt, STORIES[1].prompt
    spoilt = PERTURBATIONS[name](prompt, "", other, random.Random(0))
    if name in ("words shuffled", "one word of another prompt", "last sentence twice"):
        assert spoilt is None
    else:
        assert isinstance(spoilt[1].text, str)
