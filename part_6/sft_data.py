"""Lesson 6.2 - what fine-tuning reads: conversations as inputs and targets, from the task families or one's own file."""

import hashlib
import json
import random
import statistics
from typing import NamedTuple

from part_0.cli import InputError
from part_4.prepare_data import VAL_FRACTION, split_place, text_source
from part_4.text_pieces import open_text
from part_6.chat_data import load_conversations, turn
from part_6.collator import collate, first_fit, shift
from part_6.prompt_template import encode_chat
from part_6.task_families import EXACT
from part_6.tasks import make_tasks, result, split_of

TASKS = "tasks"  # the name of the generated data
N_VAL = 480  # tasks of the validation split


class Examples(NamedTuple):
    """train, val: lists of (inputs, targets), as from `shift`; difficulties: (N,) numbers of those of train; sha256: of the
    conversations, in hex."""

    train: list
    val: list
    difficulties: list
    sha256: str


def task_conversation(task, worked_steps=True):
    """The conversation of a task; without worked_steps the answer of an exact family is its result alone."""
    shortened = not worked_steps and task.family in EXACT and task.family != "write"
    return turn(task.prompt, result(task.answer) if shortened else task.answer)


def join_turns(lengths, share, capacity, rng):
    """Which conversations follow each other in one: a list of lists of indices, each index once.

    lengths: tokens of each conversation; share: the probability that one goes on with the next, as long as both fit into
    `capacity` tokens; rng: a random.Random, which also shuffles them.
    """
    groups, room = [], 0
    for index in rng.sample(range(len(lengths)), len(lengths)):
        if rng.random() < share and lengths[index] <= room:
            groups[-1].append(index)
        else:
            groups.append([index])
            room = capacity
        room -= lengths[index]
    return groups


def load_examples(data, n_examples, seed, worked_steps, multi_turn, tokenizer, block_size):
    """The Examples of a run.

    data: TASKS for `n_examples` tasks of the train split, of which `join_turns` makes conversations of several turns
    (multi_turn: its share; the difficulty is the tasks' mean), or the path of a file for `load_conversations`, whose
    conversations are shared out by their first message (lesson 6.1's splits; val has some 5 %). Where nobody says how
    hard an example is, its length stands in. InputError for a bad line, one that is too long for `block_size`, or too
    few of them.
    """
    if data == TASKS:
        kinds = {"train": make_tasks("train", n_examples, seed), "val": make_tasks("val", N_VAL, distinct=True)}
        parts = {split: [task_conversation(task, worked_steps) for task in tasks] for split, tasks in kinds.items()}
        lengths = [len(encode_chat(messages, tokenizer)[0]) for messages in parts["train"]]
        groups = join_turns(lengths, multi_turn, block_size, random.Random(seed))
        parts["train"] = [[message for i in group for message in parts["train"][i]] for group in groups]
        difficulties = [statistics.mean(kinds["train"][i].difficulty for i in group) for group in groups]
    else:
        parts, difficulties = {"train": [], "val": []}, None
        for messages in load_conversations(data):
            first = next(message["content"] for message in messages if message["role"] == "user")
            parts["val" if split_of(json.dumps(first)) == "val" else "train"].append(messages)
        if not parts["train"] or not parts["val"]:
            raise InputError(f"--data {data}: {len(parts['train'])} conversations to train on and {len(parts['val'])} to "
                             "validate with are too few; some 5 % of different first messages are for validation")
    examples = {}
    for split, conversations in parts.items():
        examples[split] = [shift(*encode_chat(messages, tokenizer)) for messages in conversations]
        longest = max(range(len(conversations)), key=lambda i: len(examples[split][i][0]))
        if (length := len(examples[split][longest][0])) > block_size:
            raise InputError(f"the conversation that begins with {conversations[longest][0]['content'][:40]!r} has {length} "
                             f"tokens: raise --block_size {block_size}, or leave it out")
    if difficulties is None:
        difficulties = [len(inputs) for inputs, _ in examples["train"]]
    digest = hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()
    return Examples(examples["train"], examples["val"], difficulties, digest)


def make_batch(examples, block_size, packing=True, max_rows=None, windows=()):
    """The Batch of some examples, and into how many micro-batches of at most `max_rows` rows it divides.

    windows: further pairs (inputs, targets) that get a row each: text of the base model. Empty rows are added so that the
    micro-batches are of one size; they have no targets.
    """
    if not packing:
        width = max(len(inputs) for inputs, _ in [*examples, *windows])
        rows = [[i] for i in range(len(examples))]
    else:
        width, rows = block_size, first_fit([len(inputs) for inputs, _ in examples], block_size)
    rows += [[len(examples) + i] for i in range(len(windows))]
    examples = [*examples, *windows]
    n_micro = -(-len(rows) // (max_rows or len(rows)))
    rows += [[]] * (-len(rows) % n_micro)
    return collate(examples, rows, width), n_micro


def base_text(data, split="val", n_bytes=400_000):
    """The beginning of a part, "train" or "val", of the text that a base model was trained on.

    data: a named corpus, or a path. InputError when it is not there.
    """
    source = text_source(data)
    with open_text(source) as file:
        place = split_place(file, VAL_FRACTION, data)
        file.seek(place if split == "val" else 0)
        n_bytes = n_bytes if split == "val" else min(n_bytes, place)
        return file.read(n_bytes).decode("utf-8", errors="ignore")  # the last character may be cut
