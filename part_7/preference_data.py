"""Lesson 7.1 - preference data: pairs of answers from several sources, with the annotator's choice as the only label.

    policy       two samples of the fine-tuned model
    reference    the reference answer and a sample
    corrupted    the reference, and the same with a word swapped, left out or replaced
    swapped      a story (the reference, and a sample) and the same with one word of another prompt;
                 the reference and the answer to another task of its family
    spoilt       the reference, and the same broken off without its end token, or with a sentence said twice

A reward model is asked about answers that its policy gives, so many pairs are the policy's own; but these seldom miss the
prompt, and what is never seen is never learnt: hence the other sources. Prompts are those of one split (lesson 6.1).
"""

import random
import re
from typing import NamedTuple

from part_0.cli import InputError
from part_2.tinyworld import COLOURS, NAMES, PLACES, THINGS, parse_sentence, split_sentences
from part_6.evaluation import answer
from part_6.task_families import EXACT
from part_6.tasks import corrupt, make_tasks
from part_7.gold_utility import gold_utility, preference_probability

SOURCES = ("policy", "reference", "corrupted", "swapped", "spoilt")
KINDS = {"name": NAMES, "colour": COLOURS, "thing": THINGS, "place": PLACES}


class Response(NamedTuple):
    """text: without special tokens; ended: whether an end token followed."""

    text: str
    ended: bool = True


class Candidate(NamedTuple):
    """Two different responses to a task, before anybody has chosen. source: of SOURCES."""

    task: tuple
    first: Response
    second: Response
    source: str


class Pair(NamedTuple):
    """prompt: messages, the last of the user; chosen, rejected: Response; source, family: where it comes from."""

    prompt: list
    chosen: Response
    rejected: Response
    source: str = "file"
    family: str = ""


class Labelled(NamedTuple):
    """pairs: list of Pair; gaps: utility of the chosen answer less that of the rejected one, for measuring only; ties:
    Candidates of equal utility, which nobody was asked about."""

    pairs: list
    gaps: list
    ties: list


def retell(text, prompt, rng):
    """A story's continuation for a prompt that differs in one word: its person, thing, place or colour, where the text names
    one, is another one throughout. None if it names none."""
    given = parse_sentence(prompt.removeprefix("Tell a story. "))[1]
    words = set(re.findall(r"\w+", text))
    named = [slot for slot in KINDS if given[slot] in words  # other things may have any colour
             and (slot != "colour" or f"{given['colour']} {given['thing']}" in text)]
    if not named:
        return None
    slot = rng.choice(named)
    other = rng.choice([word for word in KINDS[slot] if word not in words])
    return re.sub(rf"\b{given[slot]}\b", other, text)


def spoil(text, rng):
    """A Response that breaks off after some word, with no end token, or says one of its sentences again at the end."""
    words = text.split()
    if rng.random() < 0.5:
        return Response(" ".join(words[:rng.randint(1, len(words))]), ended=False)
    return Response(f"{text} {rng.choice(split_sentences(text))}")


def make_candidates(tasks, samples, rng):
    """Candidates from tasks and the policy's `samples`, a list of Responses for each task. rng: a random.Random."""
    found, by_family = [], {}
    for task in tasks:
        by_family.setdefault(task.family, []).append(task)
    for task, own in zip(tasks, samples, strict=True):
        reference = Response(task.answer)
        found += [(task, first, second, "policy") for first, second in zip(own[::2], own[1::2])]
        found.append((task, reference, own[0], "reference"))
        found.append((task, reference, Response(corrupt(task, rng)), "corrupted") if rng.random() < 0.5 else
                     (task, reference, spoil(task.answer, rng), "spoilt"))
        for good in (reference, own[-1]) if task.family == "story" else (reference,):
            swapped = (retell(good.text, task.prompt, rng) if task.family == "story"
                       else rng.choice(by_family[task.family]).answer)
            if swapped is not None:
                found.append((task, good, Response(swapped, good.ended), "swapped"))
    return [Candidate(*candidate) for candidate in found if candidate[1] != candidate[2]]


def label(candidates, temperature, rng):
    """Let the annotator choose. Returns Labelled. rng: a random.Random."""
    pairs, gaps, ties = [], [], []
    for candidate in candidates:
        task, first, second, source = candidate
        gap = gold_utility(task, *first) - gold_utility(task, *second)
        if abs(gap) < 1e-9:
            ties.append(candidate)
            continue
        if rng.random() >= preference_probability(gap, temperature):
            first, second, gap = second, first, -gap
        pairs.append(Pair([{"role": "user", "content": task.prompt}], first, second, source, task.family))
        gaps.append(gap)
    return Labelled(pairs, gaps, ties)


def sample_responses(model, tokenizer, tasks, n, seed=0, n_new=80):
    """`n` samples of the policy at temperature 1 for each task: a list of lists of Response."""
    prompts = [task.prompt for task in tasks for _ in range(n)]
    drawn = [Response(*one) for one in answer(model, tokenizer, prompts, 1.0, n_new, seed=seed)]
    return [drawn[i:i + n] for i in range(0, len(drawn), n)]


def make_prompts(split, n_stories, n_exact, seed):
    """`n_stories` stories and `n_exact` tasks of the exact families of a split, two lists. InputError for more than there
    are."""
    try:
        return (make_tasks(split, n_stories, seed, ("story",), distinct=True),
                make_tasks(split, n_exact, seed, tuple(EXACT), distinct=True))
    except ValueError as error:
        raise InputError(f"{n_stories} stories and {n_exact} other tasks are too many: {error}") from None


def make_pairs(model, tokenizer, split, n_stories, n_exact, temperature, seed, n_samples=6):
    """Labelled pairs for prompts of a split: `n_stories` stories, `n_exact` tasks of the exact families together.

    model, tokenizer: the policy; temperature: the annotator's. InputError for more prompts than there are.
    """
    rng = random.Random(f"preferences {split} {seed}")
    stories, exact = make_prompts(split, n_stories, n_exact, seed)
    samples = (sample_responses(model, tokenizer, stories, n_samples, seed)
               + sample_responses(model, tokenizer, exact, 2, seed))
    return label(make_candidates([*stories, *exact], samples, rng), temperature, rng)
