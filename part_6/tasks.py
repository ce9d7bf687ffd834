"""Lesson 6.1 - tasks: splits that share nothing, and a verifier that says of any answer whether it is right.

    split of a task = SHA-256(its key) -> train 70 %, val 5 %, test 10 %, rl 15 %

The key is the task's content without its wording (`task_families`), so no paraphrase or mirror image of a test task is
among the instructions that are learnt from. The verifier knows the result of six families, and the grammar of the other
two: many stories are right.
"""

import hashlib
import random
import re

from part_2.tinyworld import NAMES, PLACES, TEMPLATES, THINGS, WORDS, parse_sentence, split_sentences
from part_2.tinyworld_text import DIGITS
from part_6.task_families import DIFFICULTIES, FAMILIES

SPLITS = {"train": 0.7, "val": 0.05, "test": 0.1, "rl": 0.15}  # rl: prompts that reinforcement learning may see (Parts 7-9)

SUBSTITUTES = {"where": (*PLACES, *NAMES, *THINGS), "reverse": WORDS, "sort": WORDS, "add": DIGITS,
               "count": (*WORDS, *DIGITS), "compare": (*NAMES, *DIGITS), "write": (*WORDS, *NAMES),
               "story": (*WORDS, *NAMES)}


def split_of(key):
    """The name of the split in which tasks of this key are."""
    number = int.from_bytes(hashlib.sha256(key.encode("utf-8")).digest()[:8], "big") / 2**64
    for name, share in SPLITS.items():
        if number < share:
            return name
        number -= share
    return name


def make_tasks(split, n, seed=0, families=tuple(FAMILIES), difficulties=DIFFICULTIES, distinct=False):
    """`n` tasks of a split, families and difficulties in turn, the same for the same arguments.

    distinct: no prompt twice. ValueError for an unknown split, or when the world has too few distinct prompts.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, not {split}")
    rng, tasks, prompts, fails = random.Random(f"{split} {seed}"), [], set(), 0
    kinds = [(family, difficulty) for difficulty in difficulties for family in families]
    while len(tasks) < n:
        family, difficulty = kinds[len(tasks) % len(kinds)]
        task = FAMILIES[family](rng, difficulty)
        if split_of(task.key) == split and not (distinct and task.prompt in prompts):
            tasks.append(task)
            prompts.add(task.prompt)
            fails = 0
        elif (fails := fails + 1) == 10**5:
            raise ValueError(f"there are not enough different {family} tasks of difficulty {difficulty} in {split} for {n}")
    return tasks


def result(answer):
    """What an answer comes to: what follows its last colon, or all of it; without a full stop, blanks in a row as one."""
    return " ".join(answer.rsplit(":", 1)[-1].split()).removesuffix(".")


def verify(task, answer):
    """Whether `answer`, a str without special tokens, is right.

    write: one to three grammatical sentences, about the person and nobody else, that use all words. story: nothing wrong is
    found by `check_story`. The others: the same `result` as the reference; the steps before it are free.
    """
    if task.family == "story":
        facts = check_story(task.prompt, answer)
        return facts["grammatical"] and facts["on_prompt"]
    if task.family == "write":
        name, words = re.fullmatch(r"Write about (\w+)\. Use: (.+)", task.prompt).groups()
        sentences = split_sentences(answer)
        parsed = [parse_sentence(sentence) for sentence in sentences]
        return (1 <= len(sentences) <= 3 and None not in parsed and any(slots.get("name") for _, slots in parsed)
                and all(slots.get("name", name) == name for _, slots in parsed)
                and set(words.split()) <= set(re.findall(r"\w+", answer)))
    return result(answer) == result(task.answer)


def check_story(prompt, answer):
    """What can be computed of a story's continuation, as a dict.

    grammatical: one to three sentences of the grammar; on_prompt: it is about the prompt's person, and every thing and the
    place it names are the prompt's (animals, containers and a second person are free); tone: of the last sentence, one of
    TONES, None where that is not grammatical; repeats: whether a sentence comes twice; n_words.
    """
    _, given = parse_sentence(prompt.removeprefix("Tell a story. "))
    sentences = split_sentences(answer)
    parsed = [parse_sentence(sentence) for sentence in sentences]
    named = set(re.findall(r"\w+", answer))
    on_prompt = (all(slots.get("name", given["name"]) == given["name"] for _, slots in filter(None, parsed))
                 and named & set(THINGS) <= {given["thing"]} and named & set(PLACES) <= {given["place"]}
                 and bool({given["name"], given["thing"]} & named)
                 and all(slots["colour"] == given["colour"] for template, slots in filter(None, parsed)
                         if "{colour} {thing}" in template))
    return {"grammatical": 1 <= len(sentences) <= 3 and None not in parsed, "on_prompt": on_prompt,
            "tone": TEMPLATES[parsed[-1][0]] if parsed and parsed[-1] else None,
            "repeats": len(set(sentences)) < len(sentences), "n_words": len(answer.split())}


def corrupt(task, rng):
    """A wrong answer that looks like the reference: `verify` rejects it. rng: a random.Random."""
    words = task.answer.split()
    while True:
        changed = list(words)
        i, j = rng.randrange(len(words)), rng.randrange(len(words))
        kind = rng.randrange(3)
        if kind == 0:
            changed[i], changed[j] = changed[j], changed[i]
        elif kind == 1 and len(words) > 1:
            del changed[i]
        else:
            changed[i] = rng.choice(SUBSTITUTES[task.family]) + words[i][len(words[i].rstrip(".:,")):]
        answer = " ".join(changed)
        if not verify(task, answer):
            return answer
