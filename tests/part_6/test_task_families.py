import collections
import itertools
import os
import random
import re
import subprocess
import sys

import pytest

from part_2.tinyworld import ANIMALS, ENDINGS, NAMES, PLACES, TEMPLATES, THINGS, TONES, WORDS
from part_6.task_families import DIFFICULTIES, EXACT, FAMILIES
from part_6.tasks import SPLITS, split_of
from tests.part_2.test_tinyworld import CHANCE_999, chi_squared, follow, read_moves, read_sentence
from tests.repository import ROOT

FORMS = {  # own reading of the prompts
    "where": r"(?P<moves>.+\.) Where is the (?P<thing>\w+)\?",
    "reverse": r"(?:Reverse|Say backwards): (?P<words>.+)",
    "sort": r"(?:Sort|Put in order): (?P<words>.+)",
    "add": r"(?:What is (?P<a>\d+) \+ (?P<b>\d+)\?|Add (?P<c>\d+) and (?P<d>\d+))",
    "count": r"(?:Count|How many times) (?P<target>\w+): (?P<words>.+)",
    "compare": r"(?P<told>.+\.) Who has (?P<which>more|less|most|least)\?",
    "write": r"Write about (?P<name>\w+)\. Use: (?P<words>.+)",
    "story": r"Tell a story\. (?P<opening>.+)",
}


def read_prompt(prompt):
    """Own parser: the family and what the prompt gives, from nothing but its text."""
    [(family, found)] = [(family, found) for family, form in FORMS.items() if (found := re.fullmatch(form, prompt))]
    return family, {name: text for name, text in found.groupdict().items() if text is not None}


def canonical(prompt):
    """What makes it this task and no other: without wording, order of summands, owners, direction of the question."""
    family, given = read_prompt(prompt)
    if family == "where":
        return family, tuple(read_moves(given["moves"])), given["thing"]
    if family in ("reverse", "sort", "write"):
        return family, tuple(sorted(given["words"].split()))
    if family == "add":
        return family, tuple(sorted(map(int, given.values())))
    if family == "count":
        return family, tuple(sorted(given["words"].split())), given["target"]
    if family == "compare":
        return family, tuple(sorted(map(int, re.findall(r"\d+", given["told"]))))
    _, slots = read_sentence(given["opening"])
    return family, slots["name"], slots["colour"], slots["thing"], slots["place"]


def solve(prompt):
    """Own solution of a prompt of the exact families, but write: a str."""
    family, given = read_prompt(prompt)
    words = given.get("words", "").split()
    if family == "where":
        return follow(read_moves(given["moves"]))[given["thing"]]
    if family == "reverse":
        return " ".join(words[::-1])
    if family == "sort":
        ordered = []
        for word in words:  # insertion, before the first that is later in the alphabet
            ordered.insert(next((i for i, other in enumerate(ordered) if other > word), len(ordered)), word)
        return " ".join(ordered)
    if family == "add":
        return str(sum(map(int, given.values())))
    if family == "count":
        return str(sum(word == given["target"] for word in words))
    owners = {int(number): name for name, number in re.findall(r"(\w+) has (\d+) \w+\.", given["told"])}
    return owners[(max if given["which"] in ("more", "most") else min)(owners)]


def is_right(prompt, answer):
    """Own verdict on an answer, by `solve`, and for write and story by the word-by-word grammar."""
    family, given = read_prompt(prompt)
    if family not in ("write", "story"):
        last = answer[answer.rfind(":") + 1:].split()
        return last == solve(prompt).split() or last == (solve(prompt) + ".").split()
    sentences, parsed = [part + "." for part in answer.split(".")[:-1]], []
    for i, sentence in enumerate(sentences):
        if i and not sentence.startswith(" "):
            return False
        parsed.append(read_sentence(sentence[1:] if i else sentence))
    if answer.split(".")[-1].strip(" ") or not 1 <= len(parsed) <= 3 or None in parsed:
        return False
    heroes = {slots["name"] for _, slots in parsed if "name" in slots}
    words = set(re.findall("[A-Za-z]+", answer))
    if family == "write":
        return heroes == {given["name"]} and words >= set(given["words"].split())
    known = read_sentence(given["opening"])[1]
    return (heroes <= {known["name"]} and words & {known["name"], known["thing"]} != set()
            and all(word in (known["thing"], known["place"]) for word in words if word in THINGS or word in PLACES)
            and all(f"{slots['colour']} {known['thing']}" not in " ".join(sentences) or slots["colour"] == known["colour"]
                    for _, slots in parsed if "colour" in slots))


@pytest.fixture(scope="module")
def drawn():
    """120,000 tasks as the generators give them, all families and difficulties alike."""
    rng = random.Random("families")
    kinds = list(itertools.product(FAMILIES, DIFFICULTIES))
    return [FAMILIES[family](rng, difficulty) for family, difficulty in itertools.islice(itertools.cycle(kinds), 120_000)]


@pytest.fixture(scope="module")
def few():
    """300 tasks of each family and difficulty, as a dict."""
    return {(family, difficulty): [FAMILIES[family](random.Random(f"{family} {seed}"), difficulty) for seed in range(300)]
            for family in FAMILIES for difficulty in DIFFICULTIES}


def test_no_content_and_no_prompt_is_in_two_splits(drawn):
    # The contents are read from the prompts' text by a parser of this file, which knows nothing of the keys.
    splits, keys, prompts = {}, {}, collections.defaultdict(set)
    counts = collections.Counter()
    for task in drawn:
        content, split = canonical(task.prompt), split_of(task.key)
        assert splits.setdefault(content, split) == split, task
        assert keys.setdefault(content, task.key) == task.key, task  # so neither in tasks that were not drawn
        prompts[content].add(task.prompt)
        counts[split] += 1
    assert counts.keys() == SPLITS.keys() and min(counts.values()) > 5000
    assert len(set(keys.values())) == len(keys)  # and what is another task has another key
    owners = collections.Counter(prompt for told in prompts.values() for prompt in told)
    assert max(owners.values()) == 1
    shared = collections.Counter(content[0] for content, told in prompts.items() if len(told) > 1)
    assert min(shared[family] for family in FAMILIES) > 100  # the sample holds many ways to say the same


def test_keys_are_ones_of_the_family_and_of_ascii(drawn):
    families = {}
    for task in drawn[:20_000]:
        assert families.setdefault(task.key, task.family) == task.family == read_prompt(task.prompt)[0]
        assert task.key.isascii() and task.prompt.isascii() and task.answer.isascii()


def test_every_reference_is_right_by_an_independent_solver(drawn):
    wrong = [task for task in drawn[:40_000] if not is_right(task.prompt, task.answer)]
    assert wrong == []


def test_families_are_deterministic_and_say_who_they_are(few):
    for (family, difficulty), tasks in few.items():
        assert all((task.family, task.difficulty) == (family, difficulty) for task in tasks)
        assert FAMILIES[family](random.Random(f"{family} 7"), difficulty) == tasks[7]
        assert len({task.prompt for task in tasks}) > 30
    assert set(EXACT) == set(FAMILIES) - {"story"}


def test_tasks_do_not_depend_on_the_order_in_which_a_process_keeps_its_sets():
    code = "import hashlib; from part_6.tasks import make_tasks; " \
           "print(hashlib.sha256(repr(make_tasks('test', 300)).encode()).hexdigest())"
    runs = {subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": seed}).stdout for seed in ("1", "2", "3")}
    assert len(runs) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_all_wordings_and_orders_of_a_task_occur(family, few):
    prompts = [task.prompt for difficulty in DIFFICULTIES for task in few[family, difficulty]]
    words = {"where": ["went to", "walked to", "ran to", "took", "got", "left", "dropped", "put", "gave"],
             "reverse": ["Reverse:", "Say backwards:"], "sort": ["Sort:", "Put in order:"],
             "add": ["What is", "Add"], "count": ["Count", "How many times"],
             "compare": ["more?", "less?", "most?", "least?", *(f"{animal}s" for animal in ANIMALS)],
             "write": ["about"], "story": ["took", "brought", "carried"]}[family]
    assert all(any(word in prompt for prompt in prompts) for word in words)
    if family == "add":  # the smaller number comes first as often as last
        numbers = [list(map(int, re.findall(r"\d+", prompt))) for prompt in prompts]
        assert 0.45 < sum(a < b for a, b in numbers) / sum(a != b for a, b in numbers) < 0.55


# ---- harder is harder, as the docstrings say ----

def test_where_has_one_more_move_a_difficulty(few):
    for difficulty in DIFFICULTIES:
        n_people, n_things = ((1, 1), (2, 1), (2, 1), (2, 2), (3, 2), (3, 2))[difficulty - 1]
        for task in few["where", difficulty]:
            _, events, thing = canonical(task.prompt)
            assert len(events) == difficulty + 1
            assert len({name for _, name, _, _ in events}) <= n_people
            moved = {what for verb, _, what, _ in events if verb != "go"}
            assert thing in moved and len(moved) <= n_things


@pytest.mark.parametrize("family", ["reverse", "sort"])
def test_lists_have_one_more_word_a_difficulty_and_none_twice(family, few):
    for difficulty in DIFFICULTIES:
        for task in few[family, difficulty]:
            words = read_prompt(task.prompt)[1]["words"].split()
            assert len(words) == len(set(words)) == difficulty + 1 and set(words) <= set(WORDS)


def test_sums_carry_and_pass_100_as_the_difficulty_says(few):
    # 1: no carry from the units, sum below 100, one summand of one digit; 2: the same with a carry; 3 to 6 two digits each:
    # no carry, a carry, 100 or more without a carry, both.
    expected = {1: (1, False, False), 2: (1, True, False), 3: (2, False, False), 4: (2, True, False),
                5: (2, False, True), 6: (2, True, True)}
    for difficulty in DIFFICULTIES:
        for task in few["add", difficulty]:
            a, b = canonical(task.prompt)[1]
            assert b > 9 and (len(str(a)), a % 10 + b % 10 > 9, a + b > 99) == expected[difficulty]


def test_count_has_one_more_word_a_difficulty_of_two_to_four_kinds(few):
    for difficulty in DIFFICULTIES:
        tasks = few["count", difficulty]
        for task in tasks:
            words = read_prompt(task.prompt)[1]["words"].split()
            assert len(words) == difficulty + 3 and len(set(words)) <= 4
        assert len({solve(task.prompt) for task in tasks}) >= 4  # the answer is no constant


def test_compare_has_other_tens_then_the_same_then_more_people(few):
    for difficulty in DIFFICULTIES:
        for task in few["compare", difficulty]:
            facts = re.findall(r"(\w+) has (\d+) (\w+)s\.", task.prompt)
            numbers = [int(number) for _, number, _ in facts]
            tens = {number // 10 for number in numbers}
            assert len(facts) == len(set(numbers)) == len({name for name, *_ in facts}) == (2, 2, 2, 3, 3, 4)[difficulty - 1]
            assert {name for name, *_ in facts} <= set(NAMES) and len({animal for *_, animal in facts} & set(ANIMALS)) == 1
            assert (min(numbers) < 10 <= max(numbers)) == (difficulty == 1)
            assert difficulty not in (2, 3, 5) or len(tens) == (2 if difficulty == 2 else 1)
        firsts = sum(solve(task.prompt) == task.prompt.split()[0] for task in few["compare", difficulty])
        assert abs(firsts / 300 - 1 / len(facts)) < 0.12  # who it is cannot be told from the order


def test_write_asks_for_one_more_word_a_difficulty(few):
    for difficulty in DIFFICULTIES:
        for task in few["write", difficulty]:
            given = read_prompt(task.prompt)[1]
            words = given["words"].split()
            assert len(words) == len(set(words)) == difficulty and given["name"] in NAMES
            assert task.answer.count(".") == (1, 1, 1, 2, 2, 3)[difficulty - 1]


def test_stories_are_one_two_or_three_sentences_long_and_their_tones_have_a_third_each(drawn):
    tones, of_difficulty = collections.Counter(), collections.defaultdict(collections.Counter)
    for task in drawn:
        if task.family == "story":
            sentences = [sentence + "." for sentence in task.answer.removesuffix(".").split(". ")]
            assert len(sentences) == (1, 1, 2, 2, 3, 3)[task.difficulty - 1]
            tone = TEMPLATES[read_sentence(sentences[-1])[0]]
            assert any(read_sentence(sentences[-1])[0] in ENDINGS[ending] for ending in TONES)
            tones[tone] += 1
            of_difficulty[task.difficulty][tone] += 1
    thirds = dict.fromkeys(("happy", "neutral", "sad"), 1 / 3)
    assert tones.total() == 15_000 and chi_squared(tones, thirds) < CHANCE_999[2]
    assert all(chi_squared(counts, thirds) < 18.4 for counts in of_difficulty.values())  # 1 in 10,000, of six


# ---- the steps that an answer shows ----

def test_the_steps_of_a_sum_are_true_equations(few):
    for difficulty in DIFFICULTIES:
        for task in few["add", difficulty]:
            steps, result = task.answer.split(": ")
            for step in steps.split(", "):
                summands, total = step.split(" = ")
                assert sum(map(int, summands.split(" + "))) == int(total)
            units, tens = (int(step.split(" = ")[1]) for step in steps.split(", "))
            assert 10 * tens + units % 10 == int(result)


def test_the_steps_of_a_count_are_the_words_with_how_often_the_one_has_come(few):
    for difficulty in DIFFICULTIES:
        for task in few["count", difficulty]:
            given, steps = read_prompt(task.prompt)[1], re.findall(r"([a-z]+) (\d+)", task.answer)
            words = given["words"].split()
            assert steps == [(word, str(words[:i].count(given["target"]))) for i, word in enumerate(words, 1)]


def test_the_steps_of_where_are_true_when_they_are_told(few):
    for difficulty in DIFFICULTIES:
        for task in few["where", difficulty]:
            _, events, thing = canonical(task.prompt)
            steps = task.answer.split(": ")[0].split(", ")
            told = [i for i, (verb, _, what, _) in enumerate(events, 1) if verb == "go" or what == thing]
            for i, step in zip(told, steps, strict=True):
                *who, place = step.split()
                assert all(follow(events[:i])[one] == place for one in who) and set(who) <= {thing, *NAMES}


def test_the_steps_of_a_comparison_name_everybody_and_who_is_ahead_so_far(few):
    for difficulty in DIFFICULTIES:
        for task in few["compare", difficulty]:
            owners = [(name, int(n)) for name, n in re.findall(r"(\w+) has (\d+) ", task.prompt)]
            best = max if re.search("more|most", task.prompt) else min
            first, *steps = task.answer.split(": ")[0].split(", ")
            assert first == "{} {}".format(*owners[0])
            for i, step in enumerate(steps, 1):
                ahead = best(owners[:i + 1], key=lambda owner: owner[1])
                assert step == "{} {} = {} {}".format(*owners[i], *reversed(ahead))
