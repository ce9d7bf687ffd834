"""Lesson 6.1 - the task families: instructions about tinyworld, each with a reference answer, at six difficulties.

    where      follow people and things through a story     "Ann went to the park. Ann took the doll. Where is the doll?"
    reverse    say words backwards                          "Reverse: cup doll red"
    sort       put words in alphabetical order              "Sort: red cup doll"
    add        two numbers from 0 to 99                     "What is 47 + 25?"
    count      how often a word occurs                      "Count cup: red cup doll cup"
    compare    who has most or least                        "Ann has 47 hens. Ben has 52 hens. Who has more?"
    write      sentences that use given words               "Write about Tom. Use: red garden"
    story      go on with a story                           "Tell a story. Ben took the red doll to the shop."

Where an answer needs several steps it shows them, then a colon and the result, "7 + 5 = 12, 1 + 4 + 2 = 7: 72": the model
can then find one small thing a token instead of everything at once (Wei et al. 2022, "Chain-of-Thought Prompting"; on
arithmetic: Nye et al. 2021, "Show Your Work").
"""

import json
import re
from typing import NamedTuple

from part_2.tinyworld import ANIMALS, NAMES, TONES, WORDS, parse_sentence, split_sentences, story
from part_2.tinyworld_moves import VERBS, World, moves

DIFFICULTIES = (1, 2, 3, 4, 5, 6)


class Task(NamedTuple):
    """One instruction. key: its content with everything taken out that does not make it another task (paraphrase, order of
    the words, mirrored numbers); tasks of one key go into the same split."""

    family: str
    difficulty: int
    prompt: str
    answer: str
    key: str


def _task(family, difficulty, prompt, answer, *content):
    return Task(family, difficulty, prompt, answer, json.dumps([family, *content]))


def where(rng, difficulty):
    """Two to seven moves. The answer goes through them and keeps book: who is where, and the thing before the place of its
    holder as long as it is carried; without a name where it lies."""
    n_people, n_things = ((1, 1), (2, 1), (2, 1), (2, 2), (3, 2), (3, 2))[difficulty - 1]
    while True:  # until somebody has moved a thing
        events = moves(rng, difficulty + 1, n_people, n_things)
        if things := sorted({event.what for event in events if event.verb != "go"}):
            break
    thing, world, steps = rng.choice(things), World(), []
    for event in events:
        world.do(event)
        name = event.to if event.verb == "give" else event.name
        if event.verb == "go" or event.what == thing:
            subject = {"leave": [thing], "put": [thing]}.get(event.verb, [name])
            carried = [thing] if world.holder.get(thing) == name else []
            steps.append(" ".join([*subject, *carried, world.place[name]]))
    told = " ".join(event.sentence(rng.choice(VERBS[event.verb])) for event in events)
    return _task("where", difficulty, f"{told} Where is the {thing}?", f"{', '.join(steps)}: {world.place_of(thing)}",
                 events, thing)


def reverse(rng, difficulty):
    """Two to seven different words."""
    words = rng.sample(WORDS, difficulty + 1)
    prompt = rng.choice(("Reverse: {}", "Say backwards: {}"))
    return _task("reverse", difficulty, prompt.format(" ".join(words)), " ".join(reversed(words)), sorted(words))


def sort(rng, difficulty):
    """Two to seven different words."""
    words = rng.sample(WORDS, difficulty + 1)
    prompt = rng.choice(("Sort: {}", "Put in order: {}"))
    return _task("sort", difficulty, prompt.format(" ".join(words)), " ".join(sorted(words)), sorted(words))


def add(rng, difficulty):
    """1, 2: a number of two digits and one of one, without and with a carry; 3 to 6: two of two digits, without a carry,
    with one from the units, with a sum of 100 or more, and with both."""
    while True:
        a, b = rng.randrange(10, 100), rng.randrange(10) if difficulty <= 2 else rng.randrange(10, 100)
        units, carry = a % 10 + b % 10, (a % 10 + b % 10) // 10
        if (carry, a + b >= 100) == (difficulty in (2, 4, 6), difficulty in (5, 6)):
            break
    tens = a // 10 + b // 10 + carry
    steps = f"{a % 10} + {b % 10} = {units}, {carry} + {a // 10} + {b // 10} = {tens}"
    if rng.random() < 0.5:
        steps = f"{b % 10} + {a % 10} = {units}, {carry} + {b // 10} + {a // 10} = {tens}"
        a, b = b, a
    prompt = rng.choice(("What is {} + {}?", "Add {} and {}"))
    return _task("add", difficulty, prompt.format(a, b), f"{steps}: {a + b}", sorted((a, b)))


def count(rng, difficulty):
    """Four to nine words, of two to four kinds; the answer says them again and counts on the way."""
    kinds = rng.sample(WORDS, rng.randint(2, 4))
    words, target, found = rng.choices(kinds, k=difficulty + 3), kinds[0], 0
    steps = []
    for word in words:
        found += word == target
        steps.append(f"{word} {found}")
    prompt = rng.choice(("Count {}: {}", "How many times {}: {}"))
    return _task("count", difficulty, prompt.format(target, " ".join(words)), f"{' '.join(steps)}: {found}",
                 sorted(words), target)


def compare(rng, difficulty):
    """Two people and numbers of one and two digits, of two with other tens, and with the same tens; then three people
    with any two digits, three with the same tens, and four."""
    n = (2, 2, 2, 3, 3, 4)[difficulty - 1]
    tens = rng.randrange(1, 10)
    pools = {1: range(2, 100), 3: range(10 * tens, 10 * tens + 10), 5: range(10 * tens, 10 * tens + 10)}
    while True:
        numbers = rng.sample(pools.get(difficulty, range(10, 100)), n)
        kinds = len({number // 10 for number in numbers})
        if (difficulty != 1 or min(numbers) < 10 <= max(numbers)) and (difficulty != 2 or kinds == 2):
            break
    most, animal = rng.random() < 0.5, rng.choice(ANIMALS)
    names = rng.sample(NAMES, n)
    words = ("more" if most else "less") if n == 2 else ("most" if most else "least")
    told = " ".join(f"{name} has {number} {animal}s." for name, number in zip(names, numbers))
    best, steps = (numbers[0], names[0]), [f"{names[0]} {numbers[0]}"]
    for number, name in zip(numbers[1:], names[1:]):
        best = (max if most else min)(best, (number, name))
        steps.append(f"{name} {number} = {best[0]} {best[1]}")
    return _task("compare", difficulty, f"{told} Who has {words}?", f"{', '.join(steps)}: {best[1]}", sorted(numbers))


def write(rng, difficulty):
    """One to six words that must be used; one to three sentences about a person."""
    n_middle = 0 if difficulty <= 3 else (difficulty - 2) // 2
    name = rng.choice(NAMES)
    while True:
        opening, rest = story(rng, n_middle=n_middle, name=name)
        sentences = [opening, *split_sentences(rest)[:n_middle]]
        words = [word for word in dict.fromkeys(re.findall(r"\w+", " ".join(sentences))) if word in WORDS]
        if len(words) >= difficulty:
            break
    chosen = [words[i] for i in sorted(rng.sample(range(len(words)), difficulty))]
    return _task("write", difficulty, f"Write about {name}. Use: {' '.join(chosen)}", " ".join(sentences), sorted(chosen))


def tell_story(rng, difficulty):
    """An opening; the answer goes on to an ending that is happy, neutral or sad with equal probability. Harder is longer:
    one sentence at difficulty 1 and 2, two at 3 and 4, three at 5 and 6; the key is the opening's content alone."""
    opening, rest = story(rng, rng.choice(TONES), (difficulty - 1) // 2)
    slots = parse_sentence(opening)[1]
    return _task("story", difficulty, f"Tell a story. {opening}", rest,
                 *(slots[slot] for slot in ("name", "colour", "thing", "place")))


EXACT = {"where": where, "reverse": reverse, "sort": sort, "add": add, "count": count, "compare": compare, "write": write}
FAMILIES = {**EXACT, "story": tell_story}
