"""Lesson 7.1 - the truth behind the preferences: a utility that is known term by term, and an annotator who errs.

    u = sum of terms                                   P(a is preferred to b) = 1 / (1 + exp(-(u_a - u_b) / temperature))

Real annotators have no formula that one could look up. This one has, and so it can be measured what a reward model has
learnt from the labels alone: how far it agrees with the truth, and not only with other labels. The annotator chooses as in
Bradley & Terry (1952): nearly at random between answers that are equally good, hardly ever wrongly between unlike ones.
"""

import math
import re

from part_2.tinyworld import parse_sentence
from part_6.tasks import check_story, verify

TONES = {"happy": 1.0, "neutral": 0.0, "sad": -1.0, None: 0.0}
THING = 0.5  # the prompt's thing is named
LENGTH, FREE_WORDS = -0.06, 8  # each word beyond so many
UNGRAMMATICAL, OFF_PROMPT, REPETITION, NO_END = -1.0, -1.0, -0.5, -3.0
RIGHT, WRONG = 1.0, -1.0  # of the families with one right result


def utility_terms(task, text, ended=True):
    """What an answer is worth, term by term: a dict of floats that add up to `gold_utility`.

    ended: whether the answer came to an end token.
    """
    terms = {"end": 0.0 if ended else NO_END}
    if task.family != "story":
        return {"right": RIGHT if verify(task, text) else WRONG, **terms}
    facts = check_story(task.prompt, text)
    thing = parse_sentence(task.prompt.removeprefix("Tell a story. "))[1]["thing"]
    return {"tone": TONES[facts["tone"]], "thing": THING * (thing in re.findall(r"\w+", text)),
            "length": LENGTH * max(0, facts["n_words"] - FREE_WORDS),
            "grammar": UNGRAMMATICAL * (not facts["grammatical"]), "prompt": OFF_PROMPT * (not facts["on_prompt"]),
            "repetition": REPETITION * facts["repeats"], **terms}


def gold_utility(task, text, ended=True):
    """The utility of an answer to a task, a float."""
    return sum(utility_terms(task, text, ended).values())


def preference_probability(gap, temperature):
    """The probability that the annotator prefers the answer that is better by `gap`. temperature: above 0."""
    return 1 / (1 + math.exp(-gap / temperature)) if gap > -700 * temperature else 0.0


def consistency(gaps, temperature):
    """The mean probability that the annotator prefers the better one of two answers: on average no model that predicts his
    choices can be right more often. gaps: differences of utility, at least one."""
    gaps = list(gaps)
    return sum(preference_probability(abs(gap), temperature) for gap in gaps) / len(gaps)
