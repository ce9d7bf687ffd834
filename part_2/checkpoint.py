"""Lesson 2.4 - a checkpoint is there whole or not at all, and holds all that is needed to go on.

    file = 8 bytes that say what it is | SHA-256 of the content | content, as torch.save writes it

Written to a temporary file, flushed to the disk, then renamed: a crash at any moment leaves either the old file or the
new one. The checksum is compared before anything is interpreted, so a damaged file is named instead of loaded. The content
is read with `weights_only=True`: tensors, numbers and strings, never code.
"""

import contextlib
import errno
import hashlib
import json
import os
import pickle
from pathlib import Path

import torch

from part_0.cli import InputError
from part_2.byte_tokenizer import ByteTokenizer
from part_2.gpt import GPT, GPTConfig

MAGIC = b"LLMCKPT1"
HASH_BYTES = 32


@contextlib.contextmanager
def atomic_file(path):
    """Open a temporary file for writing bytes; when the block ends without an error it takes the place of `path`."""
    temporary = Path(f"{path}.{os.getpid()}.tmp")  # two processes may write the same file
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        if os.name == "posix":  # the new name, too, must be on the disk
            folder = os.open(temporary.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems cannot
                    raise
            finally:
                os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path, content):
    """Replace the file at `path` by `content` (bytes) in one moment."""
    with atomic_file(path) as file:
        file.write(content)


def write_json(path, content):
    """Write a dict as a JSON file, whole or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode("utf-8"))


class _Hashed:
    """A file to write to, with the SHA-256 of all that was written, and the error that ended it: torch.save hides that."""

    def __init__(self, file):
        self.file, self.sha256, self.error = file, hashlib.sha256(), None

    def write(self, content):
        self.sha256.update(content)
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self):
        self.file.flush()


def save_checkpoint(path, state):
    """Write `state`, a dict of tensors, numbers, strings, and lists and dicts of these; nothing is held in memory twice.

    OSError when the file cannot be written, as on a full disk; an older one at `path` is untouched.
    """
    with atomic_file(path) as file:
        file.write(MAGIC + bytes(HASH_BYTES))  # room for the hash, which is known at the end
        hashed = _Hashed(file)
        try:
            torch.save(state, hashed)
        except RuntimeError as error:
            raise hashed.error or error from None
        file.seek(len(MAGIC))
        file.write(hashed.sha256.digest())


def load_checkpoint(path):
    """The dict that `save_checkpoint` was given, its tensors on the CPU. InputError when the file is missing or damaged."""
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        with open(path, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise InputError(f"{path} is no checkpoint of this repository, or damaged at its start")
            digest, sha256 = file.read(HASH_BYTES), hashlib.sha256()
            while part := file.read(2**20):
                sha256.update(part)
            if sha256.digest() != digest:
                raise InputError(f"checkpoint {path} is damaged: its checksum does not match")
            file.seek(len(MAGIC) + HASH_BYTES)
            try:
                return torch.load(file, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                raise InputError(f"checkpoint {path} holds more than tensors, numbers and strings; "
                                 "it is not loaded") from None
    except OSError as error:
        raise InputError(f"checkpoint {path} cannot be read ({error.strerror})") from None


def build_gpt(sizes):
    """A GPT from the dict that a checkpoint holds as "model_config"."""
    return GPT(GPTConfig(**sizes))


def byte_tokenizer(state):
    """The tokenizer of a checkpoint of Parts 2 and 3."""
    return ByteTokenizer(state["special_tokens"])


def load_model(path, device="cpu", build=build_gpt, trainer="part_2/train.py", tokenizer=byte_tokenizer):
    """Rebuild model (in eval mode) and tokenizer from a checkpoint of `trainer`; nothing else needs to be known.

    build: turns the checkpoint's "model_config" into a model; tokenizer: the checkpoint into a tokenizer. Returns (model,
    tokenizer, state). InputError when there is no such checkpoint, or one of another trainer.
    """
    if not Path(path).is_file():
        raise InputError(f"there is no checkpoint {path}; make one with: python3 {trainer}")
    state = load_checkpoint(path)
    try:
        model = build(state["model_config"])
        model.load_state_dict(state["model"])
        rebuilt = tokenizer(state)
    except (KeyError, TypeError, RuntimeError):  # what is missing, unknown, or of another shape
        raise InputError(f"{path} is no checkpoint of {trainer}, but of another model") from None
    return model.to(device).eval(), rebuilt, state
