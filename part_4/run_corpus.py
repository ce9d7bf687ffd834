"""Lesson 4.1 - what a training run reads: its tokenizer and its tokens, made where they are missing."""

import hashlib
import os
from pathlib import Path

from part_0.cli import InputError
from part_2.corpus import CORPORA
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_file, train_bpe
from part_4.prepare_data import VAL_FRACTION, prepare, split_place, text_source
from part_4.text_pieces import open_text

SPECIAL_TOKENS = ("<|endoftext|>",)
SMALL_BYTES = 2**24  # of a text that is read sooner than other processes have started


def learn_tokenizer(data, vocab_size, special_tokens=SPECIAL_TOKENS, n_process=1, counted=None, merged=None):
    """A tokenizer from the training part of a named corpus or file, of `vocab_size` ids or as many as the text gives.

    counted, merged: are called with the number of bytes just read and of merges just made. Returns it and its merges.
    """
    source = text_source(data)
    with open_text(source) as file:
        n_train = split_place(file, VAL_FRACTION, data)
    counts = count_file(source, special_tokens, n_process, n_train, progress=counted)
    merges, ranks = train_bpe(counts, vocab_size, len(special_tokens), merged)
    return BPETokenizer(ranks, special_tokens), merges


def tokens_folder(root, data, tokenizer):
    """Where under `root` the tokens of a text with a tokenizer are kept: each tokenizer has a folder of its own."""
    name = data
    if data not in CORPORA:  # two files of one name do not share a folder
        name = f"{Path(data).stem}-{hashlib.sha256(str(Path(data).resolve()).encode()).hexdigest()[:8]}"
    return Path(root) / f"{name}-{tokenizer.fingerprint()[:12]}"


def n_processes(data):
    """How many processes read a text: for a large file as many as this one may use cores, at most 16."""
    is_large = data not in CORPORA and Path(data).is_file() and Path(data).stat().st_size > SMALL_BYTES
    n_core = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(n_core, 16) if is_large else 1


def make_corpus(config, resumed=None, progress=lambda n_bytes: None):
    """Tokenizer and tokens of a run of part_4/train.py.

    config: its flags; resumed: the checkpoint that it goes on from, whose tokenizer is taken; progress: is called with the
    number of bytes just read, to learn a tokenizer or to encode. Returns (tokenizer, the folder for `open_tokens`, SHA-256
    of the text). InputError when a file is missing or no text, or when --tokenizer names another one than the run was
    started with.
    """
    if resumed:
        tokenizer = BPETokenizer.from_state(resumed["tokenizer"])
        if config.tokenizer != "auto" and BPETokenizer.load(config.tokenizer).fingerprint() != tokenizer.fingerprint():
            raise InputError(f"{config.out} was started with another tokenizer than --tokenizer {config.tokenizer}: "
                             "start anew in another --out")
    elif config.tokenizer == "auto":
        tokenizer, _ = learn_tokenizer(config.data, config.vocab_size, n_process=n_processes(config.data), counted=progress)
    else:
        tokenizer = BPETokenizer.load(config.tokenizer)
    folder = tokens_folder(config.tokens, config.data, tokenizer)
    *_, data_hash = prepare(config.data, folder, tokenizer, n_process=n_processes(config.data), progress=progress)
    return tokenizer, folder, data_hash
