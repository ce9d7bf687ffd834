"""Lesson 4.1 - token data on disk: shards that are mapped into memory, and batches that are a function of the step.

    shard = 64 bytes header | tokens, uint16 (uint32 where the vocabulary has more than 65,536 ids)
    header = magic | version | bytes a token | CRC-32 of the tokens | tokens | bytes of text | fingerprint of the tokenizer

A mapped file is read by the operating system, page by page, where a batch looks: the data may be far larger than memory.
The batch of a step is drawn from a generator seeded with (seed, step). So a resumed run goes on with the same batches with
no state to save, and several processes share one batch without talking to each other.
"""

import functools
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from part_0.cli import InputError
from part_2.dataset import n_windows, windows_at

MAGIC, VERSION = b"LLMTOKEN", 1
HEADER = struct.Struct("<8sHHIQQ32s")  # little-endian, 64 bytes
DTYPES = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
MAX_MAPPED = 256  # each mapped shard holds a file open


class Header(NamedTuple):
    """What a shard says about itself."""

    itemsize: int  # bytes a token: 2 or 4
    crc: int  # CRC-32 of the tokens' bytes
    n_tokens: int
    n_bytes: int  # of the text
    fingerprint: str  # of the tokenizer, hex


def shard_dtype(tokenizer):
    """The NumPy dtype of a tokenizer's shards."""
    return DTYPES[2 if tokenizer.vocab_size <= 2**16 else 4]


def shard_content(tokens, n_bytes, tokenizer):
    """The bytes of a shard. tokens: (N,) integers; n_bytes: of their text."""
    dtype = shard_dtype(tokenizer)
    body = np.ascontiguousarray(tokens, dtype=dtype).tobytes()
    return HEADER.pack(MAGIC, VERSION, dtype.itemsize, zlib.crc32(body), len(tokens), n_bytes,
                       bytes.fromhex(tokenizer.fingerprint())) + body


def read_header(path):
    """The `Header` of a shard. InputError when it is missing, no shard, or shorter or longer than its header says."""
    try:
        with open(path, "rb") as file:
            raw = file.read(HEADER.size)
        size = Path(path).stat().st_size
    except OSError as error:
        raise InputError(f"the shard {path} cannot be read ({error.strerror})") from None
    if len(raw) < HEADER.size or not raw.startswith(MAGIC):
        raise InputError(f"{path} is no shard of tokens, or damaged at its start; remove it")
    _, version, itemsize, crc, n_tokens, n_bytes, fingerprint = HEADER.unpack(raw)
    if version != VERSION or itemsize not in DTYPES:
        raise InputError(f"the shard {path} is of version {version} with {itemsize} bytes a token; this code reads "
                         f"version {VERSION} with 2 or 4")
    expected = HEADER.size + n_tokens * itemsize
    if size != expected:
        raise InputError(f"the shard {path} is damaged: it has {size} bytes and should have {expected}; remove it")
    return Header(itemsize, crc, n_tokens, n_bytes, fingerprint.hex())


def check_content(path):
    """InputError unless the tokens of a shard have the checksum that its header names. Reads all of it."""
    header, crc = read_header(path), 0
    with open(path, "rb") as file:
        file.seek(HEADER.size)
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    if crc != header.crc:
        raise InputError(f"the shard {path} is damaged: its checksum does not match; remove it")


class ShardedTokens:
    """The tokens of several shards as one (N,) sequence; nothing is read before it is asked for.

    paths: the shards in order; fingerprint: of the tokenizer that must have made them. InputError for a shard that is
    damaged or another tokenizer's. `tokens[positions]` gives int64, for a slice or a tensor of positions of any shape, so
    it can stand wherever Part 2 takes a tensor of tokens.
    """

    def __init__(self, paths, fingerprint):
        self.paths = [Path(path) for path in paths]
        headers = [read_header(path) for path in self.paths]
        for path, header in zip(self.paths, headers):
            if header.fingerprint != fingerprint:
                raise InputError(f"the shard {path} was made with another tokenizer ({header.fingerprint[:12]}, not "
                                 f"{fingerprint[:12]}): remove its folder, or give that tokenizer")
        self.n_bytes = sum(header.n_bytes for header in headers)
        self._dtypes = [DTYPES[header.itemsize] for header in headers]
        self._ends = np.cumsum([header.n_tokens for header in headers], dtype=np.int64).tolist()
        self._mapped = functools.lru_cache(MAX_MAPPED)(self._map)

    def __len__(self):
        return self._ends[-1] if self._ends else 0

    def _map(self, i):
        return np.memmap(self.paths[i], dtype=self._dtypes[i], mode="r", offset=HEADER.size)

    def __getitem__(self, positions):
        if isinstance(positions, slice):
            positions = torch.arange(*positions.indices(len(self)))
        flat = positions.reshape(-1).numpy()
        if len(flat) and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"positions {flat.min()} to {flat.max()} of {len(self)} tokens")
        tokens = np.empty(len(flat), dtype=np.int64)
        shards = np.searchsorted(self._ends, flat, side="right")  # the shard of each position
        for i in np.unique(shards):
            here = shards == i
            tokens[here] = self._mapped(int(i))[flat[here] - (self._ends[i - 1] if i else 0)]
        return torch.from_numpy(tokens).view(positions.shape)

    def windows(self, starts, block_size):
        """The windows that begin at `starts`, (B,) int64. Returns inputs and targets, each (B, T) int64."""
        return windows_at(self, starts, block_size)


def get_batch(tokens, seed, step, batch_size, block_size, rank=0, world_size=1):
    """The share of process `rank` in the batch of a step: a function of its arguments, and of nothing else.

    tokens: (N,), a tensor or `ShardedTokens`. The batch of all processes is `batch_size` windows, drawn uniformly with
    replacement; process r takes the rows from r B to (r + 1) B, B = batch_size / world_size. Returns inputs and targets,
    each (B, T) int64. ValueError when batch_size is not divisible by world_size, InputError when the text is too short.
    """
    if batch_size % world_size or not 0 <= rank < world_size:
        raise ValueError(f"a batch of {batch_size} cannot be shared by {world_size} processes (this is number {rank})")
    if n_windows(tokens, block_size) < 1:
        raise InputError(f"the text has {len(tokens)} tokens, too few for --block_size {block_size} and the token after it: "
                         "give more text or a smaller --block_size")
    generator = np.random.default_rng((seed % 2**64, step))
    starts = generator.integers(n_windows(tokens, block_size), size=batch_size)
    share = batch_size // world_size
    return windows_at(tokens, torch.from_numpy(starts[rank * share:(rank + 1) * share]), block_size)
