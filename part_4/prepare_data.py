"""Lesson 4.1 - from a text to shards on disk: once, in several processes, and again only what is missing.

    prepare("my.txt", "part_4/runs/tokens", tokenizer)  ->  train tokens, validation tokens, SHA-256 of the text

The text is cut only where no chunk is cut (lesson 4.1, `text_pieces`), so the tokens are those of the whole text, whatever
the number of shards and processes. The last tenth of its bytes is for validation, as in Part 2. A shard is there whole or
not at all; index.json says of which text and tokenizer the shards are, and whether all of them are there. Work that was cut
off goes on where it was. Where several processes train, one prepares and the others wait.
"""

import hashlib
import io
import json
from functools import partial
from pathlib import Path

import numpy as np

from part_0.cli import InputError
from part_2.checkpoint import write_atomically, write_json
from part_2.corpus import CORPORA, load_corpus
from part_4.bpe_training import in_processes
from part_4.text_pieces import GPT2_PATTERN, file_spans, next_cut, open_text, read_pieces
from part_4.token_dataset import ShardedTokens, check_content, shard_content, shard_dtype

SHARD_BYTES = 2**26
VAL_FRACTION = 0.1
SPLITS = ("train", "val")


def tokenize_file(path, folder, tokenizer, n_process=1, shard_bytes=SHARD_BYTES, val_fraction=VAL_FRACTION,
                  progress=lambda n_bytes: None):
    """Write the tokens of a UTF-8 file of any size into `folder`: train_00000.tokens, ..., val_00000.tokens, index.json.

    Names of the tokenizer's special tokens in the text become their ids: here they mark the ends of documents. Shards of
    another text or tokenizer in the folder are replaced. shard_bytes: of text, what a process holds in memory; progress: is
    called with the number of bytes of text just finished. Returns what is in index.json. InputError when the file is empty,
    too short to be split or no UTF-8, when a shard that is there is damaged, or the folder cannot be written.
    """
    return _tokenize(path, str(path), folder, tokenizer, n_process, shard_bytes, val_fraction, progress)


def tokenize_text(text, folder, tokenizer, n_process=1, shard_bytes=SHARD_BYTES, val_fraction=VAL_FRACTION,
                  progress=lambda n_bytes: None, name="text"):
    """`tokenize_file` for a str. name: what messages and index.json call it. ValueError for half a surrogate pair."""
    return _tokenize(text.encode("utf-8"), name, folder, tokenizer, n_process, shard_bytes, val_fraction, progress)


def _tokenize(source, name, folder, tokenizer, n_process, shard_bytes, val_fraction, progress):
    if tokenizer.pattern != GPT2_PATTERN:
        raise InputError(f"shards are cut by GPT-2's pattern, and this tokenizer has another: {tokenizer.pattern}")
    folder = Path(folder)
    index = {"complete": True, **_plan(source, name, shard_bytes, val_fraction), "fingerprint": tokenizer.fingerprint()}
    jobs = [(shard_path(folder, split, i), *span) for split in SPLITS for i, span in enumerate(index[split])]
    try:
        old = _read_index(folder)
        if {**old, "complete": True, "source": name} != index:
            folder.mkdir(parents=True, exist_ok=True)
            for split in SPLITS:
                for path in folder.glob(f"{split}_[0-9]*.tokens"):
                    path.unlink()
            write_json(folder / "index.json", {**index, "complete": False})  # last: no old shard is taken for a new one
        missing = [job for job in jobs if not job[0].exists()]
        for path, start, end in jobs:
            if path.exists():
                check_content(path)
                progress(end - start)
        for (_, start, end), _ in zip(missing, in_processes(partial(_write_shard, source, tokenizer), missing, n_process)):
            progress(end - start)
        if missing or not old.get("complete"):
            write_json(folder / "index.json", index)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror})") from None
    return index


def split_place(file, val_fraction, name):
    """The byte of a binary file at which the validation part begins. InputError, with `name`, when it would be empty."""
    size = file.seek(0, io.SEEK_END)
    place = next_cut(file, size - int(size * val_fraction), size) if val_fraction else size
    if val_fraction and place == size:
        raise InputError(f"{name}: {size} bytes of text are too short to be split, or the last part has no whitespace: "
                         "give more text")
    return place


def _plan(source, name, shard_bytes, val_fraction):
    """Which bytes go into which shard, and what identifies the text: the part of index.json that the text decides."""
    with open_text(source) as file:
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        size = file.tell()
        middle = split_place(file, val_fraction, name)
        train, val = (list(map(list, file_spans(file, shard_bytes, *part))) for part in ((0, middle), (middle, size)))
    return {"source": name, "n_bytes": size, "sha256": digest.hexdigest(), "train": train, "val": val}


def _write_shard(source, tokenizer, job):
    path, start, end = job
    try:
        pieces = [tokenizer.encode_to_tensor(piece, allow_special=True).numpy().astype(shard_dtype(tokenizer))
                  for piece in read_pieces(source, start=start, end=end)]
    except ValueError as error:  # no UTF-8, or what tiktoken cannot cut, such as a million spaces in a row
        raise InputError(str(error)) from None
    write_atomically(path, shard_content(np.concatenate(pieces), end - start, tokenizer))


def shard_path(folder, split, number):
    """Where the shard of this number is."""
    return Path(folder) / f"{split}_{number:05d}.tokens"


def _read_index(folder):
    """What is in a folder's index.json; an empty dict where there is none, or none that can be read."""
    try:
        index = json.loads((Path(folder) / "index.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    return index if isinstance(index, dict) else {}


def open_tokens(folder, split, tokenizer):
    """The `ShardedTokens` of "train" or "val". InputError when they are not all there, damaged, or of another tokenizer."""
    index = _read_index(folder)
    if not index.get("complete"):
        raise InputError(f"there are no finished tokens in {folder}; make them with: python3 part_4/train_tokenizer.py")
    return ShardedTokens([shard_path(folder, split, i) for i in range(len(index[split]))], tokenizer.fingerprint())


def text_source(data):
    """The bytes of a named corpus, or the path of a file, which may be larger than memory. InputError for neither."""
    if data not in CORPORA and not Path(data).is_file():
        raise InputError(f"--data {data}: neither a file nor one of the named corpora ({', '.join(CORPORA)})")
    return load_corpus(data).encode("utf-8") if data in CORPORA else data


def prepare(data, folder, tokenizer, **options):
    """The tokens of a named corpus or a file, written into `folder` unless they are there already.

    data: as in `part_2.corpus.load_corpus`; options: those of `tokenize_file`. Returns (train tokens, validation tokens,
    SHA-256 of the text in hex). InputError as there.
    """
    source = text_source(data)
    if isinstance(source, bytes):
        index = tokenize_text(source.decode("utf-8"), folder, tokenizer, name=data, **options)
    else:
        index = tokenize_file(source, folder, tokenizer, **options)
    return *(open_tokens(folder, split, tokenizer) for split in SPLITS), index["sha256"]
