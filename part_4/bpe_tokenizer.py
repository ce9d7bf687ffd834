"""Lesson 4.1 - the BPE tokenizer: a text is its chunks, and in each chunk the learnt pairs are merged, the earliest first.

    "lowest"  ->  l o w e s t  ->  l o w es t  ->  l o w est  ->  low est        (ranks: es < est < low)

The ids are the 256 bytes, then a token for each merge in order (its rank), then the special tokens. `encode_by_hand` is
the rule as it is written above. `BPETokenizer` gives the same ids by tiktoken, whose Rust code is many times faster, and has
the methods of Part 2's `ByteTokenizer`. Any text has ids: what no merge knows stays bytes.
"""

import base64
import binascii
import hashlib
import json
from pathlib import Path

import numpy as np
import regex
import tiktoken
import torch

from part_0.cli import InputError
from part_2.byte_tokenizer import N_BYTES
from part_2.checkpoint import write_atomically, write_json
from part_4.text_pieces import GPT2_PATTERN, check_special_tokens, split_at_names

TRAINER = "part_4/train_tokenizer.py"


def encode_chunk(chunk, ranks):
    """The ids of one chunk (bytes): of all neighbours whose bytes together are a token, merge those of the lowest rank,
    the leftmost first, until there are none. ranks: dict of bytes to int."""
    parts = [chunk[i:i + 1] for i in range(len(chunk))]
    while True:
        merged = [left + right for left, right in zip(parts, parts[1:])]
        known = [(ranks[token], i) for i, token in enumerate(merged) if token in ranks]
        if not known:
            return [ranks[part] for part in parts]
        _, i = min(known)
        parts[i:i + 2] = [merged[i]]


def encode_by_hand(text, ranks, pattern=GPT2_PATTERN, special_ids=None):
    """The ids of a str. special_ids: names that become their id (dict of str to int); without it they are just letters."""
    ids = []
    for i, part in enumerate(split_at_names(text, list(special_ids or ()))):
        if i % 2:
            ids.append(special_ids[part])
        else:
            for chunk in regex.findall(pattern, part):
                ids += encode_chunk(chunk.encode("utf-8"), ranks)
    return ids


class BPETokenizer:
    """A tokenizer from a vocabulary.

    ranks: dict of bytes to int, every byte and every merged token, numbered 0, 1, 2, ...; special_tokens: their names, which
    get the ids after these; pattern: the regular expression that cuts a text into chunks. ValueError for ranks with gaps or
    without all bytes, or special tokens that could be misread.
    """

    def __init__(self, ranks, special_tokens=("<|endoftext|>",), pattern=GPT2_PATTERN):
        missing = [byte for byte in range(N_BYTES) if bytes([byte]) not in ranks]
        if missing:
            raise ValueError(f"the vocabulary lacks {len(missing)} of the {N_BYTES} bytes, the first is {missing[0]:#04x}")
        tokens = sorted(ranks, key=ranks.get)
        if [ranks[token] for token in tokens] != list(range(len(ranks))):
            raise ValueError(f"the ranks of {len(ranks)} tokens must be 0 to {len(ranks) - 1}, each once")
        self.ranks, self.special_tokens, self.pattern = dict(ranks), tuple(special_tokens), pattern
        check_special_tokens(self.special_tokens)
        self.special_ids = {name: len(ranks) + i for i, name in enumerate(self.special_tokens)}
        self.vocab_size = len(ranks) + len(self.special_tokens)
        self._tokens = [*tokens, *(name.encode("utf-8") for name in self.special_tokens)]
        self._encoding = tiktoken.Encoding("bpe", pat_str=pattern, mergeable_ranks=self.ranks,
                                           special_tokens=self.special_ids)

    @classmethod
    def from_merges(cls, merges, special_tokens=("<|endoftext|>",), pattern=GPT2_PATTERN):
        """The tokenizer of `train_bpe`'s merges: ids 0-255 are the bytes, 256, 257, ... the merges."""
        tokens = [*(bytes([byte]) for byte in range(N_BYTES)), *(left + right for left, right in merges)]
        return cls({token: rank for rank, token in enumerate(tokens)}, special_tokens, pattern)

    def __reduce__(self):  # copies, also those in other processes, are built anew
        return type(self), (self.ranks, self.special_tokens, self.pattern)

    def encode(self, text, allow_special=False):
        """The ids of a str, a list of int.

        The name of a special token in the text is just its letters: a text from outside must not be able to smuggle one in.
        With allow_special it becomes its id; that is for texts of our own. ValueError for half a surrogate pair, and for
        about a million whitespace characters in a row, which tiktoken cannot cut.
        """
        try:
            text.encode("utf-8")  # tiktoken would replace what cannot be encoded
        except UnicodeEncodeError as error:
            raise ValueError(f"the text holds half a surrogate pair, {text[error.start]!r}, at {error.start}: that is no "
                             "Unicode character and has no bytes") from None
        try:
            return self._encoding.encode(text, allowed_special="all" if allow_special else set(), disallowed_special=())
        except ValueError as error:
            raise ValueError(f"tiktoken cannot cut the text into chunks: {error}") from None

    def encode_to_tensor(self, text, allow_special=False):
        """The ids of a whole corpus as a (T,) int32 tensor; otherwise like `encode`."""
        return torch.from_numpy(np.array(self.encode(text, allow_special), dtype=np.int32))

    def decode_bytes(self, ids):
        """The exact bytes of a sequence of ids; a special id gives its name. ValueError for an id outside the vocabulary."""
        pieces = []
        for id in ids:
            if not 0 <= id < self.vocab_size:
                raise ValueError(f"id {id} is outside the vocabulary of {self.vocab_size}")
            pieces.append(self._tokens[id])
        return b"".join(pieces)

    def decode(self, ids):
        """The text of a sequence of ids. Bytes that are no UTF-8 become U+FFFD: visible, never dropped."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def state(self):
        """All that decides the ids, as a dict of strings, for a checkpoint; the ranks as the lines of their file."""
        lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(self._tokens[:len(self.ranks)]))
        return {"ranks": "".join(lines), "special_tokens": list(self.special_tokens), "pattern": self.pattern}

    @classmethod
    def from_state(cls, state):
        """The tokenizer that `state` was taken from. ValueError when the state is damaged."""
        ranks = {}
        for number, line in enumerate(state["ranks"].splitlines(), 1):
            try:
                token, rank = line.split()
                token = base64.b64decode(token, validate=True)
                rank = int(rank)
            except (ValueError, binascii.Error):
                raise ValueError(f"line {number} of the ranks is no token in base64 and its rank") from None
            if token in ranks:
                raise ValueError(f"line {number} of the ranks repeats a token")
            ranks[token] = rank
        return cls(ranks, tuple(state["special_tokens"]), state["pattern"])

    def fingerprint(self):
        """The SHA-256, in hex, of all that decides the ids: equal for two tokenizers only if they are."""
        return hashlib.sha256(json.dumps(self.state(), sort_keys=True).encode("utf-8")).hexdigest()

    def save(self, path):
        """Write NAME.tiktoken (the ranks, in tiktoken's own format) and NAME.json (the rest), each whole or not at all."""
        path, state = Path(path), self.state()
        _check_name(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, state.pop("ranks").encode("ascii"))
        write_json(path.with_suffix(".json"), {**state, "fingerprint": self.fingerprint()})

    @classmethod
    def load(cls, path):
        """Read what `save` wrote. A .tiktoken file without a .json beside it, such as GPT-2's published one, gets GPT-2's
        pattern and no special tokens. InputError when a file is missing or damaged."""
        path = Path(path)
        _check_name(path)
        if not path.is_file():
            raise InputError(f"there is no tokenizer {path}; make one with: python3 {TRAINER}")
        beside = path.with_suffix(".json")
        try:
            rest = {"special_tokens": [], "pattern": GPT2_PATTERN}
            if beside.exists():
                rest = json.loads(beside.read_text(encoding="utf-8"))
            tokenizer = cls.from_state({"ranks": path.read_text(encoding="ascii"), **rest})
            if rest.get("fingerprint", tokenizer.fingerprint()) != tokenizer.fingerprint():
                raise ValueError(f"it does not belong to {beside.name}: the fingerprints differ")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"the tokenizer {path} is damaged or of another kind: {error}") from None
        return tokenizer


def _check_name(path):
    if path.suffix != ".tiktoken":
        raise InputError(f"a tokenizer's file is called NAME.tiktoken, not {path.name!r}")
