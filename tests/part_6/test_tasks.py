import collections
import hashlib
import itertools
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from part_2.tinyworld import NAMES, WORDS
from part_6.task_families import DIFFICULTIES, EXACT, FAMILIES, Task
from part_6.tasks import SPLITS, check_story, corrupt, make_tasks, result, split_of, verify
from tests.part_2.test_tinyworld import CHANCE_999, chi_squared
from tests.part_6.test_task_families import canonical, is_right

EACH = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def tasks():
    """100 tasks of each family and difficulty."""
    return make_tasks("train", 4800, seed=11)


# ---- splits ----

@given(st.text())
def test_the_split_is_the_first_64_bits_of_sha_256_on_a_ruler(key):
    place = Fraction(int(hashlib.sha256(key.encode()).hexdigest()[:16], 16), 2**64)
    ends = {"train": Fraction(7, 10), "val": Fraction(75, 100), "test": Fraction(85, 100), "rl": 1}
    assert split_of(key) == next(name for name, end in ends.items() if place < end)


def test_the_shares_of_the_splits():
    counts = collections.Counter(split_of(f"key {i}") for i in range(50_000))
    assert chi_squared(counts, {"train": 0.7, "val": 0.05, "test": 0.1, "rl": 0.15}) < CHANCE_999[3]
    assert sum(SPLITS.values()) == pytest.approx(1)


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_are_those_of_the_split_families_and_difficulties_in_turn(split):
    tasks = make_tasks(split, 500, seed=2)
    assert all(split_of(task.key) == split for task in tasks)
    kinds = itertools.cycle(itertools.product(DIFFICULTIES, FAMILIES))
    assert [(task.difficulty, task.family) for task in tasks] == list(itertools.islice(kinds, 500))


def test_what_make_tasks_gives_shares_nothing_between_splits():
    # Two seeds each: neither seed nor call matters, the content alone does.
    seen = {}
    for split, seed in itertools.product(SPLITS, (0, 1)):
        for task in make_tasks(split, 1500, seed):
            assert seen.setdefault(canonical(task.prompt), split) == seen.setdefault(task.prompt, split) == split
    assert collections.Counter(seen.values()).keys() == SPLITS.keys()


def test_the_same_arguments_give_the_same_tasks_and_another_seed_others():
    first = make_tasks("rl", 300, seed=4)
    assert make_tasks("rl", 300, seed=4) == first == make_tasks("rl", 400, seed=4)[:300]
    assert len({task.prompt for task in first} & {task.prompt for task in make_tasks("rl", 300, seed=5)}) < 100


@EACH
def test_each_family_has_150_distinct_test_prompts_and_none_twice(family):
    tasks = make_tasks("test", 150, families=(family,), distinct=True)
    assert len({task.prompt for task in tasks}) == 150 and {task.family for task in tasks} == {family}
    assert collections.Counter(task.difficulty for task in tasks) == dict.fromkeys(DIFFICULTIES, 25)


def test_only_the_asked_families_and_difficulties():
    tasks = make_tasks("val", 60, families=("sort", "add"), difficulties=(2, 5))
    assert {(task.family, task.difficulty) for task in tasks} == {("sort", 2), ("sort", 5), ("add", 2), ("add", 5)}
    assert make_tasks("train", 0) == []


def test_an_unknown_split_is_refused_with_the_names():
    with pytest.raises(ValueError, match="one of train, val, test, rl, not valid"):
        make_tasks("valid", 1)


def test_more_distinct_tasks_than_there_are_is_refused():
    # 9 tens times 10 + 9 + ... + 1 pairs of units without a carry: 495 sums; val has a twentieth, each in four prompts.
    with pytest.raises(ValueError, match="not enough different add tasks of difficulty 1 in val for 1000"):
        make_tasks("val", 1000, families=("add",), difficulties=(1,), distinct=True)
    assert len(make_tasks("val", 1000, families=("add",), difficulties=(1,))) == 1000  # without distinct there is no end


# ---- the verifier ----

def test_every_reference_is_right_for_verifier_and_independent_solver(tasks):
    assert all(verify(task, task.answer) and is_right(task.prompt, task.answer) for task in tasks)


def test_corrupted_answers_are_wrong_for_verifier_and_independent_solver(tasks):
    rng, answers = random.Random(0), []
    for task in tasks:
        for _ in range(4):
            answers.append(corrupt(task, rng))
            assert answers[-1] != task.answer
            assert not verify(task, answers[-1]) and not is_right(task.prompt, answers[-1]), (task, answers[-1])
    assert len(set(answers)) > len(answers) / 4


def test_a_corrupted_answer_differs_in_a_word_or_two(tasks):
    rng, kinds = random.Random(1), collections.Counter()
    for task in tasks:
        words, changed = task.answer.split(), corrupt(task, rng).split()
        if len(changed) == len(words):
            differing = [i for i, (word, other) in enumerate(zip(words, changed)) if word != other]
            swapped = len(differing) == 2 and sorted(words) == sorted(changed)
            assert len(differing) == 1 or swapped
            kinds["swapped" if swapped else "replaced"] += 1
        else:
            assert changed in [words[:i] + words[i + 1:] for i in range(len(words))] and changed
            kinds["left out"] += 1
    assert min(kinds[kind] for kind in ("swapped", "replaced", "left out")) > 300


def test_corruption_is_by_the_given_generator_alone(tasks):
    for task in tasks[:200]:
        assert corrupt(task, random.Random(3)) == corrupt(task, random.Random(3))


@EACH
def test_verifier_and_independent_solver_agree_on_whatever_is_answered(family, tasks):
    # Answers of other tasks, references with words changed, and sentences put together anew: right ones and wrong ones.
    own, rng = [task for task in tasks if task.family == family], random.Random(family)
    verdicts = collections.Counter()
    for task in own * 3:
        other = rng.choice(own)
        words = task.answer.split()
        i = rng.randrange(len(words))
        words[i] = rng.choice([*words, *other.answer.split(), *WORDS[:3], *NAMES, ""])
        sentences = [*re.findall(r"[^.]+\.", task.answer), *re.findall(r"[^.]+\.", other.answer)]
        mixed = " ".join(part.strip() for part in rng.sample(sentences, min(len(sentences), rng.randint(0, 4))))
        for answer in (other.answer, " ".join(words), " ".join(words[rng.randrange(3):]), mixed, task.answer + "."):
            assert verify(task, answer) == is_right(task.prompt, answer), (task, answer)
            verdicts[verify(task, answer)] += 1
    assert min(verdicts[True], verdicts[False]) > 60


def test_results_by_hand():
    assert result("7 + 5 = 12, 1 + 4 + 2 = 7: 72") == "72" and result("72.") == result(" 72 ") == "72"
    assert result("red  cup\ndoll") == "red cup doll" and result("a: b: c.") == "c" and result("") == result("x:") == ""


SUM = Task("add", 4, "What is 47 + 25?", "7 + 5 = 12, 1 + 4 + 2 = 7: 72", "")
LIST = Task("reverse", 2, "Reverse: cup doll red", "red doll cup", "")


@pytest.mark.parametrize("task, answer, right", [
    (SUM, "72", True), (SUM, "72.", True), (SUM, "7 + 5 = 13: 72", True), (SUM, ":72", True), (SUM, "72 ", True),
    (SUM, "7 + 5 = 12, 1 + 4 + 2 = 7: 73", False), (SUM, "72: 73", False), (SUM, "072", False), (SUM, "72 72", False),
    (SUM, "", False), (SUM, ":", False), (SUM, "72:", False), (SUM, "seventy-two", False), (SUM, "7 2", False),
    (LIST, "red doll cup", True), (LIST, "red doll cup.", True), (LIST, "cup doll red", False), (LIST, "red doll", False),
    (LIST, "red doll cup cup", False), (LIST, "Red doll cup", False), (LIST, "red, doll, cup", False)])
def test_verdicts_on_results_by_hand(task, answer, right):
    assert verify(task, answer) is right and is_right(task.prompt, answer) is right


WRITE = Task("write", 2, "Write about Ann. Use: red park", "Ann took the red ball to the park.", "")


@pytest.mark.parametrize("answer, right", [
    ("Ann took the red ball to the park.", True), ("Ann saw a red hen in the park.", True),
    ("Ann met Ben in the park. Ann showed the ball to Ben. Ann put the ball in a red box.", True),
    ("Ann took the red ball to the park", False), ("Ben took the red ball to the park.", False),
    ("Ann took the red ball to the barn.", False), ("Ann took the blue ball to the park.", False),
    ("Ann saw a red hen in the park. Ben smiled.", False), ("red park", False), ("", False), ("Ann. Use: red park.", False),
    ("Ann saw a red hen in the park. Ann cried. Ann cried. Ann cried.", False), ("Ann met Ann in the red park.", False),
    ("Ann took the red ball to the park.Ann smiled.", False)])
def test_verdicts_on_write_by_hand(answer, right):
    assert verify(WRITE, answer) is right and is_right(WRITE.prompt, answer) is right


def test_write_must_name_its_person():
    task = Task("write", 1, "Write about Ann. Use: ball", "", "")
    assert not verify(task, "The ball was still there.") and verify(task, "Ann sat down. The ball was still there.")


STORY = "Tell a story. Ann took the red ball to the park."


@pytest.mark.parametrize("answer, grammatical, on_prompt, tone", [
    ("Ann smiled.", True, True, "happy"), ("The ball made Ann sad.", True, True, "sad"),
    ("Ann put the ball in a blue box. Ann sat down.", True, True, "neutral"),  # the box may have any colour
    ("Ann showed the ball to Ben. Ann met Ben in the park. Ann cried.", True, True, "sad"),
    ("The ball was still there.", True, True, "neutral"), ("A pig came to Ann.", True, True, "neutral"),
    ("Ben smiled.", True, False, "happy"), ("Ann smiled. Ben smiled.", True, False, "happy"),
    ("Ann played with the cup.", True, False, "neutral"), ("Ann met Ben in the barn.", True, False, "neutral"),
    ("Ann looked at the blue ball.", True, False, "neutral"), ("Ann looked at the red ball.", True, True, "neutral"),
    ("A pig came to Ben.", True, False, "neutral"), ("Ann smiled", False, True, None), ("", False, False, None),
    ("Ann flew. Ann smiled.", False, True, "happy"), ("Ann smiled. Ann flew.", False, True, None),
    ("Ann smiled. Ann sat down. Ann laughed. Ann cried.", False, True, "sad")])
def test_stories_judged_by_hand(answer, grammatical, on_prompt, tone):
    facts = check_story(STORY, answer)
    assert (facts["grammatical"], facts["on_prompt"], facts["tone"]) == (grammatical, on_prompt, tone)
    right = grammatical and on_prompt
    assert verify(Task("story", 1, STORY, "", ""), answer) is right and is_right(STORY, answer) is right


def test_repeats_and_words_of_a_story_are_counted():
    facts = check_story(STORY, "Ann smiled. Ann saw a pig there. Ann smiled.")
    assert facts["repeats"] is True and facts["n_words"] == 2 + 5 + 2
    facts = check_story(STORY, "Ann smiled. Ann laughed.")
    assert facts["repeats"] is False and facts["n_words"] == 4


@given(st.text(max_size=60))
def test_any_text_gets_a_verdict(text):
    for family in FAMILIES:
        [task] = make_tasks("train", 1, families=(family,))
        assert verify(task, text) in (True, False)
        assert family not in EXACT or family == "write" or verify(task, f"{text}: {task.answer}")
