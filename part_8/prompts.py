"""Lesson 8.4 - prompts: what the policy is asked, while it learns and when it is judged.

Prompts of the "rl" split are in no stage's training data (lesson 6.1), those of "test" in no stage's at all. One's own come
from a file of one JSON object a line in any form of lesson 6.1, whose last answer is left out; they are shared out by a hash
of their text.
"""

import json
from typing import NamedTuple

from part_0.cli import InputError
from part_6.chat_data import FORMS, read_lines, read_messages
from part_6.prompt_template import encode_prompt
from part_6.task_families import FAMILIES
from part_6.tasks import make_tasks, split_of

TASKS = "tasks"  # the name of the generated data


class Prompt(NamedTuple):
    """messages: a conversation that ends with the user; ids: the same as tokens; task: its Task, or None for a file's."""

    messages: list
    ids: list
    task: tuple | None


def read_families(text):
    """The names of task families in a text, separated by commas, or all of them for "all". InputError for others."""
    names = tuple(FAMILIES) if text == "all" else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in FAMILIES]:
        raise InputError(f"--families {text}: {unknown[0]!r} is none of {', '.join(FAMILIES)}")
    return names


def load_prompts(data, split, n, seed, families, tokenizer):
    """Prompts of a split, none twice: at most `n`, and exactly `n` tasks.

    data: TASKS, or the path of a file, of whose prompts 90 % are "rl" and 10 % "test"; families: of the tasks; tokenizer: of
    `chat_tokenizer`. InputError where there are too few tasks, a bad line, or none left for the split.
    """
    if data == TASKS:
        try:
            tasks = make_tasks(split, n, seed, families, distinct=True)
        except ValueError as error:
            raise InputError(f"{n} prompts are too many: {error}") from None
        return [_prompt([{"role": "user", "content": task.prompt}], tokenizer, task) for task in tasks]
    texts = dict.fromkeys(json.dumps(messages[:-1]) for messages in read_lines(data, read_messages, FORMS))
    chosen = [text for text in texts if (split_of(text) == "test") == (split == "test")]
    if not chosen:
        raise InputError(f"--data {data} has no prompts for {split}: of its different ones 10 % are held out")
    return [_prompt(json.loads(text), tokenizer) for text in chosen[:n]]


def _prompt(messages, tokenizer, task=None):
    return Prompt(messages, encode_prompt(messages, tokenizer), task)
