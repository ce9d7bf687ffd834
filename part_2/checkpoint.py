"""Lesson 2.4 - a checkpoint is there whole or not at all, and holds all that is needed to go on.

Written to a temporary file, flushed to the disk, then renamed: a crash at any moment leaves either the old file or the
new one. A SHA-256 of the content lies inside, so a damaged file is recognised and named instead of loaded. It is read with
`weights_only=True`: tensors, numbers and strings, never code.
"""

import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import torch

from part_0.cli import InputError
from part_2.byte_tokenizer import ByteTokenizer
from part_2.gpt import GPT, GPTConfig


def write_atomically(path, content):
    """Replace the file at `path` by `content` (bytes) in one moment."""
    temporary = Path(f"{path}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path, content):
    """Write a dict as a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))


def save_checkpoint(path, state):
    """state: a dict of tensors, numbers, strings, and lists and dicts of these."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    sealed = io.BytesIO()
    torch.save({"sha256": hashlib.sha256(content).hexdigest(),
                "content": torch.frombuffer(bytearray(content), dtype=torch.uint8)}, sealed)
    write_atomically(path, sealed.getvalue())


def load_checkpoint(path):
    """The dict that `save_checkpoint` was given, its tensors on the CPU. InputError when the file is missing or damaged."""
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        sealed = torch.load(path, map_location="cpu", weights_only=True)
        content = sealed["content"].numpy().tobytes()
        if hashlib.sha256(content).hexdigest() != sealed["sha256"]:
            raise InputError(f"checkpoint {path} is damaged: its checksum does not match")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"checkpoint {path} is damaged or not one of this repository's: {error}".split("\n")[0]) from None


def load_model(path, device="cpu"):
    """Rebuild model (in eval mode) and tokenizer from a checkpoint of part_2/train.py; nothing else needs to be known.

    Returns (model, tokenizer, state). InputError when there is no such checkpoint.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}; make one with: python3 part_2/train.py")
    state = load_checkpoint(path)
    model = GPT(GPTConfig(**state["model_config"]))
    model.load_state_dict(state["model"])
    return model.to(device).eval(), ByteTokenizer(state["special_tokens"]), state
