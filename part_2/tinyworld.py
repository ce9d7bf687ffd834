"""Lesson 2.2 - tinyworld: a generated world of a few people, things and places, and endless simple English about it.

    sentence = a template of the grammar with its slots filled from the vocabulary
    document = a story, a chain of moves, a list that is read out twice, or a few facts

Small models need a small world: its stories have a vocabulary that a model of half a million weights can master (the idea of
Eldan & Li 2023, "TinyStories"), its texts belong to nobody, there is no end to them, and because the grammar is known a
program can tell whether a text keeps to it (`parse_sentence`). The same seed gives the same text on every machine.
"""

import re

NAMES = ("Ann", "Ben", "Dan", "Eva", "Ida", "Kim", "Leo", "Max", "Mia", "Sam", "Tom", "Zoe")
THINGS = ("ball", "bell", "book", "coin", "cup", "doll", "drum", "hat", "key", "kite", "lamp", "mug", "pen", "ring", "shoe",
          "top")
PLACES = ("attic", "barn", "cave", "forest", "garden", "kitchen", "park", "school", "shop", "tower")
COLOURS = ("black", "blue", "brown", "green", "pink", "red", "white", "yellow")
CONTAINERS = ("bag", "basket", "box", "chest", "pot")
ANIMALS = ("bird", "cat", "cow", "dog", "duck", "hen", "horse", "pig")
MOODS = {"happy": ("happy", "glad", "proud"), "neutral": ("calm", "quiet", "busy"), "sad": ("sad", "upset", "lonely")}
TONES = tuple(MOODS)
WORDS = (*THINGS, *PLACES, *COLOURS, *CONTAINERS, *ANIMALS)  # what lists are made of

# Slots of the templates. {name}: the person that the story is about; {other}: another one; {thing}: with or without colour.
SLOTS = {"name": NAMES, "other": NAMES, "thing": THINGS, "place": PLACES, "colour": COLOURS, "container": CONTAINERS,
         "animal": ANIMALS, **MOODS}
OPENINGS = ("{name} took the {colour} {thing} to the {place}.", "{name} brought the {colour} {thing} to the {place}.",
            "{name} carried the {colour} {thing} to the {place}.")
MIDDLES = ("{name} played with the {thing}.", "{name} looked at the {colour} {thing}.", "{name} saw a {animal} there.",
           "{name} saw a {colour} {animal} in the {place}.", "A {animal} came to {name}.",
           "{name} showed the {thing} to {other}.", "{name} met {other} in the {place}.",
           "{name} put the {thing} in a {colour} {container}.", "{name} found a {container} in the {place}.",
           "{name} fed a {animal} in the {place}.")
ENDINGS = {
    "happy": ("{name} smiled.", "{name} was {happy}.", "{name} liked the {thing} very much.", "{name} laughed.",
              "The {thing} made {name} {happy}."),
    "neutral": ("{name} went home.", "{name} was {neutral}.", "{name} took the {thing} home.", "{name} sat down.",
                "The {thing} was still there."),
    "sad": ("{name} cried.", "{name} was {sad}.", "{name} lost the {thing}.", "{name} sighed.",
            "The {thing} made {name} {sad}."),
}
TEMPLATES = {**dict.fromkeys((*OPENINGS, *MIDDLES), "neutral"),
             **{template: tone for tone, templates in ENDINGS.items() for template in templates}}


def fill(template, rng, **given):
    """A template with its slots filled: from `given` where a slot is named there, else drawn; {other} is never {name}."""
    words = dict(given)
    for slot in re.findall(r"\{(\w+)\}", template):
        if slot not in words:
            words[slot] = rng.choice([word for word in SLOTS[slot] if slot != "other" or word != words.get("name")])
    return template.format(**words)


def _pattern(template):
    parts = re.split(r"\{(\w+)\}", template)
    return re.compile("".join(f"(?P<{part}>{'|'.join(SLOTS[part])})" if i % 2 else re.escape(part)
                              for i, part in enumerate(parts)))


_PATTERNS = {template: _pattern(template) for template in TEMPLATES}


def parse_sentence(sentence):
    """The template and the words of its slots, (str, dict), of a sentence with its full stop; None if there is none."""
    for template, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(sentence):
            words = found.groupdict()
            if words.get("other") is None or words["other"] != words.get("name"):
                return template, words
    return None


def split_sentences(text):
    """The sentences of a text, each with its full stop; what has none at the end is one too. None of them is empty."""
    return [sentence for sentence in re.split(r"(?<=\.) ", text) if sentence]


def story(rng, tone=None, n_middle=None, **given):
    """A story as (opening, rest): one sentence, and one to three that end in a tone of `TONES`, which is drawn if None.

    n_middle: sentences between opening and ending, 0 to 2, drawn if None; given: words of the opening's slots.
    """
    words = {slot: given.get(slot) or rng.choice(SLOTS[slot]) for slot in ("name", "colour", "thing", "place")}
    template = given.get("opening") or rng.choice(OPENINGS)
    middles = rng.sample(MIDDLES, rng.randrange(3) if n_middle is None else n_middle)
    rest = [*middles, rng.choice(ENDINGS[tone or rng.choice(TONES)])]
    kept = {slot: words[slot] for slot in ("name", "thing", "place")}
    kept["other"] = rng.choice([name for name in NAMES if name != words["name"]])  # a story has two people at most
    return template.format(**words), " ".join(
        fill(part, rng, **kept, **({"colour": words["colour"]} if "{colour} {thing}" in part else {})) for part in rest)
