"""Lesson 2.2 - the corpus `tinyworld`: documents of the generated world, one after the other, for as long as one likes.

    document = a story | moves, and what is where after them | a list, said twice | what some people have

Repetition is there on purpose: copying what was said before is a skill that a model learns from text that rewards it
(lesson 1.7), and instructions build on it later (part_6).
"""

import random

from part_2.tinyworld import ANIMALS, NAMES, TONES, WORDS, story
from part_2.tinyworld_moves import World, moves, tell

DIGITS = tuple("0123456789")  # one digit a number, so that the tokenizer merges no two of them: Part 6 adds digit by digit
N_CHARACTERS = 5_000_000  # of the named corpus


def story_document(rng):
    """A story of two to four sentences, its ending happy, neutral or sad with equal probability."""
    return " ".join(story(rng, rng.choice(TONES)))


def moves_document(rng):
    """Moves of a few people; between them and at the end it is said where some of the people and things are."""
    world, parts = World(), []
    for event in moves(rng, rng.randint(3, 8), rng.randint(1, 3), rng.randint(1, 2)):
        world.do(event)
        parts.append(tell([event], rng))
        if rng.random() < 0.3:
            parts.append(whereabouts(world, rng.choice(world.known())))
    parts += [whereabouts(world, who) for who in rng.sample(world.known(), min(2, len(world.known())))]
    return " ".join(parts)


def whereabouts(world, who):
    """The sentence that says where a person or a thing is."""
    return f"{who if who in NAMES else f'The {who}'} is in the {world.place_of(who)}."


def list_document(rng):
    """Words or digits that two people say, one after the other: the second repeats them."""
    first, second = rng.sample(NAMES, 2)
    words = " ".join(rng.choices(rng.choice((WORDS, WORDS, DIGITS)), k=rng.randint(2, 7)))
    return f"{first} said: {words}. {second} said: {words}."


def counts_document(rng):
    """How many animals of a kind some people have, and who it was that has a number of them."""
    animal, n = rng.choice(ANIMALS), rng.randint(1, 4)
    names, numbers = rng.sample(NAMES, n + 1), rng.sample(range(2, 10), n)
    told = [f"{name} has {number} {animal}s." for name, number in zip(names, numbers)]
    asked = rng.randrange(n)
    return f"{' '.join(told)} {names[n]} asked who has {numbers[asked]} {animal}s. {told[asked]}"


DOCUMENTS = (story_document, story_document, moves_document, moves_document, list_document, counts_document)


def tinyworld(n_characters=N_CHARACTERS, seed=0):
    """At least `n_characters` of text, documents apart by an empty line; the same for the same seed."""
    rng, documents, length = random.Random(f"tinyworld {seed}"), [], -2  # no empty line before the first
    while length < n_characters:
        documents.append(rng.choice(DOCUMENTS)(rng))
        length += len(documents[-1]) + 2
    return "\n\n".join(documents)
