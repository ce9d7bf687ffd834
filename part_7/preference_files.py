"""Lesson 7.1 - one's own preferences: files of one JSON object a line, in either of two forms.

    {"prompt": "...", "chosen": "...", "rejected": "..."}
    {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "\\n\\nHuman: ...\\n\\nAssistant: ..."}

In the second form, that of HH-RLHF (Bai et al. 2022), the prompt is what both dialogues begin with, up to the assistant's
last answer. A pair of equal answers says nothing, and dialogues that part earlier have no common prompt: they are dropped
and counted. A line that is neither form stops the run before anything is written.
"""

import collections
import json
import re

from part_6.chat_data import read_lines, turn
from part_6.prompt_template import check_messages
from part_6.tasks import split_of
from part_7.preference_data import Pair, Response

FORMS = '{"prompt", "chosen", "rejected"} or dialogues {"chosen", "rejected"}'
SPEAKERS = {"Human": "user", "Assistant": "assistant"}
SPLITS = {"train": "train", "rl": "train", "val": "val", "test": "test"}  # of lesson 6.1: 85 %, 5 %, 10 %


def read_dialogue(text):
    """The messages of a dialogue of the second form, which ends with the assistant. ValueError when it is none."""
    parts = re.split(r"\n\n(Human|Assistant): ?", text)
    if parts[0].strip() or len(parts) < 5:
        raise ValueError('a dialogue is "\\n\\nHuman: ...\\n\\nAssistant: ...", not ' + repr(text[:40]))
    messages = []
    for speaker, said in zip(parts[1::2], parts[2::2]):
        if messages and messages[-1]["role"] == SPEAKERS[speaker]:  # two turns of one in a row become one
            messages[-1]["content"] += "\n\n" + said.strip()
        else:
            messages.append({"role": SPEAKERS[speaker], "content": said.strip()})
    check_messages(messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError("a dialogue ends with the assistant")
    return messages


def read_pair(record):
    """The Pair of one JSON object, or "equal" or "part early" where it makes none. ValueError when it has neither form."""
    if not isinstance(record, dict):
        raise ValueError(f"it is no JSON object, but {record!r}"[:80])
    texts = [record.get(name) for name in ("chosen", "rejected")]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f'"chosen" and "rejected" must be texts; the forms are {FORMS}')
    if "prompt" in record:
        if not isinstance(record["prompt"], str):
            raise ValueError('"prompt" must be a text')
        for text in texts:
            check_messages(turn(record["prompt"], text))
        prompt = turn(record["prompt"], "")[:1]
        ended = [record.get(f"{name}_ended", True) for name in ("chosen", "rejected")]
        if not all(isinstance(one, bool) for one in ended):
            raise ValueError('"chosen_ended" and "rejected_ended" must be true or false')
    else:
        (*prompt, chosen), (*other_prompt, rejected) = map(read_dialogue, texts)
        if prompt != other_prompt:
            return "part early"
        texts, ended = (chosen["content"], rejected["content"]), (True, True)
    more = record.get("source", "file"), record.get("family", "")
    if not all(isinstance(text, str) for text in more):
        raise ValueError('"source" and "family" must be texts')
    chosen, rejected = map(Response, texts, ended)
    return "equal" if chosen == rejected else Pair(prompt, chosen, rejected, *more)


def load_preferences(path):
    """The pairs of a JSONL file by split, {"train", "val", "test": list of Pair}, and how many were dropped: a dict with the
    keys "equal" and "part early" where there are such. A prompt's pairs are all in one split. InputError names the first bad
    line."""
    parts, dropped = {"train": [], "val": [], "test": []}, collections.Counter()
    for pair in read_lines(path, read_pair, FORMS):
        if isinstance(pair, str):
            dropped[pair] += 1
        else:
            parts[SPLITS[split_of(json.dumps(pair.prompt))]].append(pair)
    return parts, dict(dropped)


def as_line(pair):
    """A pair of one message as a line of the first form, with source, family, and which answers have no end."""
    record = {"prompt": pair.prompt[0]["content"], "chosen": pair.chosen.text, "rejected": pair.rejected.text}
    more = {"chosen_ended": pair.chosen.ended, "rejected_ended": pair.rejected.ended, "source": pair.source,
            "family": pair.family}
    return json.dumps(record | {name: value for name, value in more.items() if value is not True and value != ""})
