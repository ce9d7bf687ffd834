import collections
import itertools
import json
import math
import random
import re

import pytest

from part_2.tinyworld import COLOURS, NAMES, PLACES, THINGS, story
from part_6.chat_model import load_model, resize_vocabulary
from part_6.prompt_template import chat_tokenizer
from part_6.task_families import EXACT, FAMILIES, Task
from part_6.tasks import check_story, make_tasks, verify
from part_7 import preference_data
from part_7.gold_utility import consistency, gold_utility
from part_7.preference_data import (
    SOURCES,
    Candidate,
    Labelled,
    Pair,
    Response,
    label,
    make_candidates,
    make_pairs,
    retell,
    sample_responses,
    spoil,
)
from part_7.preference_files import as_line
from tests.part_6.tiny_base import WORLD, make_base

PROMPT = "Tell a story. Ann took the red ball to the park."
STORY = Task("story", 1, PROMPT, "Ann smiled.", "")
KINDS = {"name": NAMES, "colour": COLOURS, "thing": THINGS, "place": PLACES}


def slots(prompt):
    """The words of an opening by their places: "Tell a story. Ann took the red ball to the park." """
    words = prompt.replace(".", "").split()
    return dict(zip(KINDS, (words[3], words[6], words[7], words[10])))


def grammatical_answer(task, rng):
    """An answer such as a good policy may give: for a story another one of the same opening."""
    return story(rng, **slots(task.prompt))[1] if task.family == "story" else task.answer


@pytest.fixture(scope="module")
def tasks():
    """240 stories and 210 tasks of the other families."""
    return make_tasks("train", 240, families=("story",), distinct=True) + make_tasks("train", 210, families=tuple(EXACT))


@pytest.fixture(scope="module")
def samples(tasks):
    """Four answers to each story and two to each other task: a fifth are another task's, and a tenth have no end."""
    rng = random.Random(0)
    return [[Response(grammatical_answer(task if rng.random() < 0.8 else rng.choice(tasks), rng), rng.random() < 0.9)
             for _ in range(4 if task.family == "story" else 2)] for task in tasks]


@pytest.fixture(scope="module")
def candidates(tasks, samples):
    return make_candidates(tasks, samples, random.Random(1))


# ---- candidates ----

def test_no_candidate_has_two_equal_responses_and_each_source_is_there_for_stories_and_others(candidates):
    assert all(first != second for _, first, second, _ in candidates)
    counts = collections.Counter((source, task.family == "story") for task, _, _, source in candidates)
    assert counts.keys() == set(itertools.product(SOURCES, (True, False))) and min(counts.values()) > 20
    assert {task.family for task, *_ in candidates} == set(FAMILIES)


def test_policy_candidates_are_its_samples_two_and_two_and_each_is_used_once(tasks, samples, candidates):
    found = [candidate[:3] for candidate in candidates if candidate.source == "policy"]
    expected = [(task, own[i], own[i + 1]) for task, own in zip(tasks, samples) for i in range(0, len(own), 2)]
    assert found == [both for both in expected if both[1] != both[2]]


def test_reference_candidates_are_reference_and_first_sample(tasks, samples, candidates):
    found = [candidate[:3] for candidate in candidates if candidate.source == "reference"]
    expected = [(task, Response(task.answer, True), own[0]) for task, own in zip(tasks, samples)]
    assert found == [both for both in expected if both[1] != both[2]]


def test_corrupted_candidates_are_a_right_answer_and_one_that_the_verifier_rejects(candidates):
    found = [candidate for candidate in candidates if candidate.source == "corrupted"]
    assert len(found) > 150
    for task, good, bad, _ in found:
        assert good == Response(task.answer) and verify(task, good.text)
        assert bad.ended and not verify(task, bad.text)


def test_spoilt_candidates_are_a_right_answer_and_a_part_of_it_or_more_than_it(candidates):
    found = [candidate for candidate in candidates if candidate.source == "spoilt"]
    assert len(found) > 150
    for task, good, bad, _ in found:
        assert good == Response(task.answer)
        assert bad.text.startswith(task.answer + " ") if bad.ended else task.answer.startswith(bad.text)


def test_a_spoilt_answer_breaks_off_anywhere_or_says_a_sentence_twice():
    text, rng, counts = "Ann met Ben. Ann cried.", random.Random(0), collections.Counter()
    for _ in range(4000):
        counts[spoil(text, rng)] += 1
    broken = ["Ann", "Ann met", "Ann met Ben.", "Ann met Ben. Ann", text]
    doubled = [f"{text} Ann met Ben.", f"{text} Ann cried."]
    assert counts.keys() == {*(Response(part, False) for part in broken), *(Response(more, True) for more in doubled)}
    # 400 of each broken one and 1000 of each doubled one, 4 standard deviations: 4 * sqrt(4000 p (1 - p)) = 76 and 110
    assert all(abs(counts[Response(part, False)] - 400) < 76 for part in broken)
    assert all(abs(counts[Response(more, True)] - 1000) < 110 for more in doubled)


def test_swapped_answers_of_the_exact_families_are_those_of_another_task_of_the_family(tasks, candidates):
    answers = {(task.family, task.answer) for task in tasks}
    found = [candidate for candidate in candidates if candidate.source == "swapped" and candidate.task.family != "story"]
    assert len(found) > 150
    for task, good, other, _ in found:
        assert good == Response(task.answer) != other and other.ended and (task.family, other.text) in answers


def change(text, told):
    """The words that differ: {(word, word instead)}."""
    before, after = re.findall(r"\w+", text), re.findall(r"\w+", told)
    assert len(before) == len(after)
    return {both for both in zip(before, after) if both[0] != both[1]}


def test_a_swapped_story_keeps_the_end_of_the_good_one_and_is_off_the_prompt(tasks, samples, candidates):
    found = [candidate for candidate in candidates if candidate.source == "swapped" and candidate.task.family == "story"]
    own = {task.prompt: (Response(task.answer), answers[-1]) for task, answers in zip(tasks, samples)}
    counts = collections.Counter()
    for task, good, told, _ in found:
        assert good in own[task.prompt] and told.ended == good.ended and len(change(good.text, told.text)) == 1
        assert not check_story(task.prompt, told.text)["on_prompt"], (task.prompt, told.text)
        counts[good == own[task.prompt][0]] += 1
    assert min(counts[True], counts[False]) > 150  # both of the reference and of the policy's last sample


def test_a_retold_story_fits_the_prompt_with_that_word_changed_and_not_the_prompt():
    rng, counts = random.Random(2), collections.Counter()
    for task in make_tasks("train", 2000, families=("story",)):
        given = slots(task.prompt)
        told = retell(task.answer, task.prompt, rng)
        if told is None:
            counts[None] += 1
            assert not set(given.values()) & set(re.findall(r"\w+", task.answer))
            continue
        [(word, other)] = change(task.answer, told)
        [slot] = [slot for slot in KINDS if given[slot] == word]
        assert other in KINDS[slot] and other not in re.findall(r"\w+", task.answer) and word not in re.findall(r"\w+", told)
        assert verify(task._replace(prompt=re.sub(rf"\b{word}\b", other, task.prompt)), told), (task.prompt, told)
        assert not check_story(task.prompt, told)["on_prompt"], (task.prompt, told)
        counts[slot] += 1
    assert counts[None] == 0  # each of the grammar's own stories names its person or its thing
    assert all(counts[slot] > 60 for slot in KINDS)


def test_retelling_by_hand():
    told = {retell("Ann lost the ball. Ann cried.", PROMPT, random.Random(seed)) for seed in range(400)}
    names, things = set(NAMES) - {"Ann"}, set(THINGS) - {"ball"}
    assert told == {f"{name} lost the ball. {name} cried." for name in names} | {
        f"Ann lost the {thing}. Ann cried." for thing in things}
    assert retell("It rained on balls and Annie.", PROMPT, random.Random(0)) is None
    assert retell("", PROMPT, random.Random(0)) is None
    assert retell("Ann saw Annabel.", PROMPT, random.Random(0)).endswith(" saw Annabel.")  # whole words alone
    # The colour of the prompt's thing must be kept; a container may have any: changing that one would change nothing.
    assert all("red box" in retell("Ann put the ball in a red box.", PROMPT, random.Random(seed)) for seed in range(50))
    met = {retell("Ann met Ben in the garden.", PROMPT, random.Random(seed)) for seed in range(200)}
    assert met == {f"{name} met Ben in the garden." for name in names - {"Ben"}}  # nobody meets himself


def test_candidates_are_by_the_given_generator_alone_and_need_samples_for_each_task(tasks, samples, candidates):
    assert make_candidates(tasks, samples, random.Random(1)) == candidates
    assert make_candidates(tasks, samples, random.Random(2)) != candidates
    with pytest.raises(ValueError):
        make_candidates(tasks, samples[:-1], random.Random(1))


# ---- the annotator ----

HAPPY, SEEN, CALM, SAD = (Response(text) for text in (
    "Ann smiled.", "The ball made Ann glad.", "Ann met Ben in the park. Ann sat down.", "Ann cried."))  # 1, 1.5, -0.06, -1


@pytest.mark.parametrize("better, worse, gap", [
    (SEEN, HAPPY, 0.5), (HAPPY, CALM, 1.06), (CALM, SAD, 0.94), (HAPPY, SAD, 2), (SEEN, SAD, 2.5),
    (Response("Ann sat down."), CALM, 0.06)])
@pytest.mark.parametrize("temperature", [0.4, 2.0])
def test_choices_are_as_frequent_as_bradley_and_terry_say(better, worse, gap, temperature):
    n, rng = 1500, random.Random(f"{gap} {temperature}")
    asked = [Candidate(STORY, better, worse, "policy"), Candidate(STORY, worse, better, "policy")]
    p = 1 / (1 + math.exp(-gap / temperature))
    for candidate in asked:  # whichever is shown first
        labelled = label([candidate] * n, temperature, rng)
        share = sum(pair.chosen == better for pair in labelled.pairs) / n
        assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-9  # 4 standard deviations
        for pair, own in zip(labelled.pairs, labelled.gaps, strict=True):
            assert {pair.chosen, pair.rejected} == {better, worse}
            assert own == pytest.approx(gap if pair.chosen == better else -gap)


def test_ties_are_kept_apart_and_never_labelled():
    tie = Candidate(STORY, HAPPY, Response("Ann laughed."), "policy")
    # 1.5 both: seven words or five, and the last sentence counts alone
    other = Candidate(STORY, Response("Ann cried. The ball made Ann glad."),
                        Response("The ball made Ann glad."), "corrupted")
    clear = Candidate(STORY, SAD, SEEN, "reference")
    labelled = label([tie, clear, other, tie], 1e-3, random.Random(0))
    assert labelled.ties == [tie, other, tie] and len(labelled.pairs) == len(labelled.gaps) == 1
    assert labelled == Labelled([Pair([{"role": "user", "content": PROMPT}], SEEN, SAD, "reference", "story")], [2.5],
                                [tie, other, tie])


def test_a_utility_that_differs_by_rounding_alone_is_a_tie(monkeypatch):
    values = {"Ann smiled.": 0.1 + 0.2, "Ann cried.": 0.3}
    monkeypatch.setattr(preference_data, "gold_utility", lambda task, text, ended: values[text])
    assert 0 < values["Ann smiled."] - values["Ann cried."] < 1e-15
    candidate = Candidate(STORY, HAPPY, SAD, "policy")
    assert label([candidate], 0.4, random.Random(0)) == Labelled([], [], [candidate])


def test_every_candidate_is_labelled_once_or_a_tie_and_gaps_are_of_the_chosen_answer(candidates):
    labelled = label(candidates, 0.4, random.Random(3))
    left = iter(candidates)
    ties, pairs = iter(labelled.ties), iter(zip(labelled.pairs, labelled.gaps, strict=True))
    for task, first, second, source in left:
        utilities = {first: gold_utility(task, *first), second: gold_utility(task, *second)}
        if abs(utilities[first] - utilities[second]) < 1e-6:
            assert next(ties) == (task, first, second, source)
            continue
        pair, gap = next(pairs)
        assert pair.prompt == [{"role": "user", "content": task.prompt}]
        assert {pair.chosen, pair.rejected} == {first, second} and (pair.source, pair.family) == (source, task.family)
        assert gap == pytest.approx(utilities[pair.chosen] - utilities[pair.rejected])
    assert next(ties, None) is next(pairs, None) is None
    assert labelled.ties and min(labelled.gaps) < 0


def test_an_annotator_near_temperature_0_never_errs_and_a_hot_one_guesses(candidates):
    assert min(label(candidates, 1e-6, random.Random(0)).gaps) > 0
    gaps = label(candidates, 1e6, random.Random(0)).gaps
    assert abs(sum(gap > 0 for gap in gaps) / len(gaps) - 0.5) < 4 * math.sqrt(0.25 / len(gaps))


def test_the_same_seed_gives_the_same_labels_and_another_one_others(candidates):
    first = label(candidates, 0.4, random.Random(5))
    assert label(candidates, 0.4, random.Random(5)) == first
    assert label(candidates, 0.4, random.Random(6)).pairs != first.pairs


@pytest.mark.parametrize("temperature", [0.4, 1.5])
def test_consistency_is_the_share_of_choices_that_agree_with_the_truth(candidates, temperature):
    # A model that always prefers the better answer is right where the annotator did not err: no model can be more so.
    rng, n = random.Random(8), 12
    draws = [label(candidates, temperature, rng).gaps for _ in range(n)]
    promised = consistency(draws[0], temperature)
    total = n * len(draws[0])
    share = sum(gap > 0 for gaps in draws for gap in gaps) / total
    assert abs(share - promised) < 4 * math.sqrt(promised * (1 - promised) / total)
    assert consistency(draws[1], temperature) == pytest.approx(promised)  # it does not depend on the choices made


def test_only_choices_leave_the_annotator(monkeypatch, candidates):
    # Another utility that prefers as often, u' = 3 u + 7 at three times the temperature, gives the same pairs and lines.
    labelled = label(candidates, 0.4, random.Random(4))
    monkeypatch.setattr(preference_data, "gold_utility", lambda *args: 3 * gold_utility(*args) + 7)
    other = label(candidates, 1.2, random.Random(4))
    assert other.pairs == labelled.pairs and list(map(as_line, other.pairs)) == list(map(as_line, labelled.pairs))
    assert other.gaps == pytest.approx([3 * gap for gap in labelled.gaps])
    assert Pair._fields == ("prompt", "chosen", "rejected", "source", "family") and Response._fields == ("text", "ended")
    for pair in labelled.pairs:
        record = json.loads(as_line(pair))
        assert record.keys() <= {"prompt", "chosen", "rejected", "chosen_ended", "rejected_ended", "source", "family"}
        assert all(value is False or isinstance(value, str) for value in record.values())


# ---- pairs of a policy ----

@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """An untrained model with room for the template's tokens, and its tokenizer."""
    folder = tmp_path_factory.mktemp("base")
    (folder / "world.txt").write_text(WORLD, encoding="utf-8")
    make_base(folder / "base.pt", folder / "world.txt")
    model, tokenizer, _ = load_model(folder / "base.pt")
    tokenizer = chat_tokenizer(tokenizer)
    return resize_vocabulary(model, tokenizer.vocab_size).eval(), tokenizer


def test_an_untrained_policy_gives_pairs_and_the_same_for_the_same_seed(policy):
    first = make_pairs(*policy, "train", 6, 7, 0.4, seed=1)
    assert first.pairs and make_pairs(*policy, "train", 6, 7, 0.4, seed=1) == first
    assert make_pairs(*policy, "train", 6, 7, 0.4, seed=2).pairs != first.pairs
    assert {pair.family for pair in first.pairs} == set(FAMILIES)
    assert all(pair.chosen != pair.rejected for pair in first.pairs)


def test_samples_belong_to_their_tasks_and_follow_the_seed(policy):
    tasks = make_tasks("train", 3)
    samples = sample_responses(*policy, tasks, 5, seed=3, n_new=4)
    assert [len(own) for own in samples] == [5, 5, 5]
    assert all(isinstance(one, Response) for own in samples for one in own)
    assert len({one.text for own in samples for one in own}) > 10  # temperature 1: they differ
    assert sample_responses(*policy, tasks, 5, seed=3, n_new=4) == samples
    assert sample_responses(*policy, tasks, 5, seed=4, n_new=4) != samples


@pytest.fixture
def quick_policy(monkeypatch):
    """Answers that name their prompt, their number, and how they were drawn; the second of a prompt has no end."""
    def answer(model, tokenizer, prompts, temperature, n_new, seed):
        seen = collections.Counter()
        for prompt in prompts:
            seen[prompt] += 1
            yield f"{prompt} | {seen[prompt]} | {temperature} | {n_new} | {seed}", seen[prompt] != 2
    monkeypatch.setattr(preference_data, "answer", answer)


def test_each_task_is_sampled_n_times_at_temperature_1(quick_policy):
    tasks = make_tasks("val", 4)
    assert sample_responses(None, None, tasks, 3, 7, 20) == [
        [Response(f"{task.prompt} | {i} | 1.0 | 20 | 7", i != 2) for i in (1, 2, 3)] for task in tasks]


def test_pairs_of_different_splits_share_no_prompt(quick_policy):
    prompts = {}
    for split in ("train", "val", "test"):
        labelled = make_pairs(None, None, split, 90, 140, 0.4, seed=1)
        prompts[split] = {pair.prompt[0]["content"] for pair in labelled.pairs} | {tie.task.prompt for tie in labelled.ties}
        expected = [task for n, families in ((90, ("story",)), (140, tuple(EXACT)))
                    for task in make_tasks(split, n, 1, families, distinct=True)]
        assert prompts[split] == {task.prompt for task in expected} and len(prompts[split]) == 230
    assert not any(prompts[one] & prompts[other] for one, other in itertools.combinations(prompts, 2))


def test_of_a_story_all_samples_asked_for_are_used_and_of_others_two(quick_policy):
    labelled = make_pairs(None, None, "train", 12, 14, 0.4, seed=1, n_samples=6)
    sources = collections.Counter((pair.family == "story", pair.source) for pair in labelled.pairs)
    sources.update((tie.task.family == "story", tie.source) for tie in labelled.ties)
    assert sources[True, "policy"] == 12 * 3 and sources[False, "policy"] == 14
    # Its second sample never ends and is worth 3 less; a chosen one is an error of the annotator, e^-7.5 : 1.
    assert all(pair.chosen.ended for pair in labelled.pairs if pair.source == "policy")


def test_the_seed_is_of_the_choices_too(quick_policy, monkeypatch):
    # With the same prompts and samples for any seed, another one still gives other choices.
    monkeypatch.setattr(preference_data, "make_tasks", lambda split, n, seed, *args, **more: make_tasks(split, n, 0, *args))
    monkeypatch.setattr(preference_data, "sample_responses", lambda model, tokenizer, tasks, n, seed: [
        [Response(task.answer, i % 2 > 0) for i in range(n)] for task in tasks])
    one, again, other = (make_pairs(None, None, "train", 60, 14, 2.0, seed=seed).pairs for seed in (1, 1, 2))
    assert one == again != other
