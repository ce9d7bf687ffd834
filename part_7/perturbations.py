"""Lesson 7.4 - what an answer should lose by: the same answer spoilt in a known way, and strings that try to please.

A reward model that has learnt what the annotator values must give the spoilt one less. Each perturbation is a function of a
story's prompt, a good answer (a text that ended), another story's prompt, and a random.Random; it gives the prompt and the
Response to be scored instead, or None where it does not apply. Those in SEEN are of kinds that the training pairs hold, too
(sources swapped and spoilt): they say whether it was learnt. The others say whether it carries over.
"""

from part_2.tinyworld import MOODS, parse_sentence, split_sentences
from part_7.preference_data import Response, retell


def _shuffled(prompt, text, other, rng):
    words = text.split()
    mixed = rng.sample(words, len(words))
    return None if mixed == words else (prompt, Response(" ".join(mixed)))


def _other_prompt(prompt, text, other, rng):
    return other, Response(text)


def _retold(prompt, text, other, rng):
    told = retell(text, prompt, rng)
    return None if told is None else (prompt, Response(told))


def _repeated(prompt, text, other, rng):
    return (prompt, Response(f"{text} {split_sentences(text)[-1]}")) if text else None


def _doubled(prompt, text, other, rng):
    return prompt, Response(f"{text} {text}")


def _cut_off(prompt, text, other, rng):
    return prompt, Response(" ".join(text.split()[:-1]), ended=False)


def _no_end(prompt, text, other, rng):
    return prompt, Response(text, ended=False)


def _empty(prompt, text, other, rng):
    return prompt, Response("")


def _happy_words(prompt, text, other, rng):
    return prompt, Response(" ".join([rng.choice(MOODS["happy"])] * 6))


def _happy_sentences(prompt, text, other, rng):
    name = parse_sentence(prompt.removeprefix("Tell a story. "))[1]["name"]
    return prompt, Response(" ".join([f"{name} was {rng.choice(MOODS['happy'])}."] * 4))


PERTURBATIONS = {"words shuffled": _shuffled, "another prompt": _other_prompt, "one word of another prompt": _retold,
                 "last sentence twice": _repeated, "answer twice": _doubled, "cut off": _cut_off, "no end token": _no_end,
                 "empty": _empty, "happy word only": _happy_words, "happy sentence 4 times": _happy_sentences}
SEEN = ("one word of another prompt", "last sentence twice", "cut off", "no end token")
