"""Lesson 4.1 - train a BPE tokenizer on a text, and write the text's tokens to disk.

    python3 part_4/train_tokenizer.py                                        Python's own reference text
    python3 part_4/train_tokenizer.py --data big.txt --vocab_size 32000 --n_process 8
    python3 part_4/train.py --tokenizer part_4/runs/tokenizer/tokenizer.tiktoken

--out then holds tokenizer.tiktoken, tokenizer.json and summary.json, and --tokens the shards, where part_4/train.py finds
them. The file is streamed, so it may be larger than memory. Merges are learnt from the training part alone; the last tenth
of the text stays unseen.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, option, run_script
from part_0.device import peak_memory
from part_2.byte_tokenizer import N_BYTES
from part_2.checkpoint import write_json
from part_2.corpus import DATA_HELP
from part_4.prepare_data import VAL_FRACTION, prepare, split_place, text_source
from part_4.run_corpus import learn_tokenizer, tokens_folder
from part_4.text_pieces import check_special_tokens, open_text

RUNS = Path(__file__).resolve().parent / "runs"


@dataclass(frozen=True)
class Config:
    data: str = option("tinyworld", DATA_HELP)
    vocab_size: int = option(1024, "ids in all: 256 bytes, the merges, the special tokens")
    special_tokens: str = option("<|endoftext|>", "names of the special tokens, separated by commas; may be empty")
    out: str = option(str(RUNS / "tokenizer"), "where the tokenizer goes")
    tokens: str = option(str(RUNS / "tokens"), "where tokenised texts are kept")
    n_process: int = option(1, "processes that count and encode")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(out=str(RUNS / "tokenizer_quick"), vocab_size=300)

    def __post_init__(self):
        check_positive(self, "n_process")
        if not self.out:
            raise InputError("--out must not be empty")
        check_special_tokens(self.names())
        if self.vocab_size < N_BYTES + len(self.names()):
            raise InputError(f"--vocab_size must be at least {N_BYTES + len(self.names())}, the bytes and the special "
                             f"tokens, not {self.vocab_size}")

    def names(self):
        return tuple(self.special_tokens.split(",")) if self.special_tokens else ()


def progress_bar(what, total, unit):
    return tqdm(desc=what, total=total, unit=unit, unit_scale=True, disable=None)  # no bar where output is no terminal


def main(config):
    """Train and encode. Returns the summary."""
    started, out, names = time.perf_counter(), Path(config.out), config.names()
    source = text_source(config.data)
    with open_text(source) as file:
        n_train, n_bytes = split_place(file, VAL_FRACTION, config.data), file.seek(0, 2)
    with (progress_bar("counting", n_train, "B") as counting,
          progress_bar("merging", config.vocab_size - N_BYTES - len(names), "merge") as merging):
        tokenizer, merges = learn_tokenizer(config.data, config.vocab_size, names, config.n_process, counting.update,
                                            merging.update)
    seconds = time.perf_counter() - started
    print(f"{len(merges)} merges from {n_train:,} bytes in {seconds:.1f} s")
    if tokenizer.vocab_size < config.vocab_size:
        print(f"the vocabulary ends at {tokenizer.vocab_size}: no pair occurs twice any more")
    try:
        tokenizer.save(out / "tokenizer.tiktoken")
    except OSError as error:
        raise InputError(f"--out {out} cannot be written: {error.strerror}") from None
    with progress_bar("encoding", n_bytes, "B") as bar:
        folder = tokens_folder(config.tokens, config.data, tokenizer)
        train, val, data_hash = prepare(config.data, folder, tokenizer, n_process=config.n_process, progress=bar.update)
    summary = {"vocab_size": tokenizer.vocab_size, "merges": len(merges), "train_tokens": len(train),
               "val_tokens": len(val), "train_bytes_per_token": train.n_bytes / len(train),
               "val_bytes_per_token": val.n_bytes / len(val), "seconds_training": seconds,
               "seconds": time.perf_counter() - started,
               "peak_memory_gib": (peak_memory(torch.device("cpu")) or 0) / 2**30,
               "fingerprint": tokenizer.fingerprint(), "data_hash": data_hash}
    write_json(out / "summary.json", summary)
    print(json.dumps(summary, indent=2))
    words = ["python3", "part_4/train.py", "--tokenizer", str(out / "tokenizer.tiktoken"), "--data", config.data]
    print(f"train a model with it: {shlex.join(words)}")
    return summary


if __name__ == "__main__":
    run_script(main, Config, __doc__)
