"""Lesson 6.1 - one's own instructions: files of one JSON object a line, in any of three common forms.

    {"prompt": "...", "response": "..."}
    {"instruction": "...", "input": "...", "output": "..."}                                        (Stanford Alpaca, 2023)
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

Each line becomes a conversation, a list of {"role", "content"}. A line that cannot be one is named by its number and the
reason, and nothing is trained: a learner who does not know what was left out cannot judge what came of it.
"""

import json
from pathlib import Path

from part_0.cli import InputError
from part_6.prompt_template import check_messages

FORMS = '{"prompt", "response"}, {"instruction", "input", "output"} or {"messages"}'


def turn(user, assistant):
    """A conversation of one question and one answer."""
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def read_messages(record):
    """The conversation of one JSON object. ValueError when it has none of the three forms, or ends with no answer."""
    if not isinstance(record, dict):
        raise ValueError(f"it is no JSON object, but {record!r}"[:80])
    if "messages" in record:
        messages = record["messages"]
    elif "response" in record and "prompt" in record:
        messages = turn(record["prompt"], record["response"])
    elif "output" in record and "instruction" in record:
        instruction, more = record["instruction"], record.get("input", "")
        if not isinstance(instruction, str) or not isinstance(more, str):
            raise ValueError('"instruction" and "input" must be texts')
        messages = turn(f"{instruction}\n\n{more}" if more else instruction, record["output"])
    else:
        raise ValueError(f"it has the keys {', '.join(map(repr, record)) or 'of nothing'}, not those of {FORMS}")
    check_messages(messages)
    if messages[-1]["role"] != "assistant" or not messages[-1]["content"].strip():
        raise ValueError("its last message is no answer of the assistant")
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def read_lines(path, read, forms):
    """`read` of each object of a JSONL file, in order; empty lines are passed over. forms: what a line may look like, to say
    so of an empty file. InputError names the first line that is no JSON, or for which `read` raises ValueError."""
    path, records = Path(path), []
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            records.append(read(json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}, line {number}: no UTF-8 (byte {error.start})") from None
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: no JSON ({error.msg} at column {error.colno})") from None
        except RecursionError:
            raise InputError(f"{path}, line {number}: no JSON that can be read (nested too deep)") from None
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from None
    if not records:
        raise InputError(f"{path} holds nothing: a line each, {forms}")
    return records


def load_conversations(path):
    """The conversations of a JSONL file, in order. InputError names the first bad line."""
    return read_lines(path, read_messages, FORMS)
