"""Lesson 4.1 - which windows of the token file does each process read, and does that change when a run is resumed?

Writes a text into shards, reads a header back, and draws batches for several processes and for one. What to see: the
windows of all processes together are those that one process would read alone (a ring around every mark), and a run that
starts in the middle reads the same windows (crosses), though it knows nothing but the number of the step.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import itertools
import tempfile
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, COLORS, figure_path, plt, save_figure
from part_2.byte_tokenizer import N_BYTES
from part_2.corpus import DATA_HELP, load_corpus
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_4.prepare_data import open_tokens, shard_path, tokenize_text
from part_4.token_dataset import HEADER, get_batch, read_header

MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    vocab_size: int = option(1024, "ids of the tokenizer")
    n_shards: int = option(4, "shards of the training part, about")
    batch_size: int = option(8, "windows a step, of all processes together")
    block_size: int = option(128, "tokens a window")
    world_size: int = option(4, "processes")
    steps: int = option(8, "steps to draw; the resumed run starts in the middle")
    seed: int = option(0, "seed of the batches")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(vocab_size=300, steps=2)

    def __post_init__(self):
        check_positive(self, "n_shards", "batch_size", "block_size", "world_size", "steps")
        if self.vocab_size < N_BYTES:
            raise InputError(f"--vocab_size must be at least {N_BYTES}, not {self.vocab_size}")
        if self.world_size > len(COLORS) or self.batch_size % self.world_size:
            raise InputError(f"--batch_size {self.batch_size} must be divisible by --world_size {self.world_size}, "
                             f"which may be at most {len(COLORS)}")


def main(config):
    text = load_corpus(config.data)
    tokenizer = BPETokenizer(train_bpe(count_chunks([text]), config.vocab_size)[1], ())
    fig, ax = plt.subplots(figsize=(10, 5))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        shard_bytes = len(text.encode("utf-8")) * 9 // 10 // config.n_shards + 1
        started = time.perf_counter()
        index = tokenize_text(text, folder, tokenizer, shard_bytes=shard_bytes)
        print(f"{index['n_bytes']:,} bytes of text into {len(index['train'])} + {len(index['val'])} shards in "
              f"{time.perf_counter() - started:.2f} s")
        headers = [read_header(shard_path(folder, "train", i)) for i in range(len(index["train"]))]
        print(f"train_00000.tokens: {HEADER.size} bytes header, {headers[0]}")
        tokens = open_tokens(folder, "train", tokenizer)
        numbered = torch.arange(len(tokens))  # with the tokens 0, 1, 2, ... the first token of a window is its start

        def starts(step, rank=0, world_size=1):
            return get_batch(numbered, config.seed, step, config.batch_size, config.block_size, rank, world_size)[0][:, 0]

        middle = config.steps // 2
        for step in range(middle, config.steps):  # the run that starts late comes first: nothing was drawn before it
            ax.scatter(starts(step), [step + 0.32] * config.batch_size, s=30, color=BLACK, marker="x", linewidths=1.2,
                       label="resumed run" if step == middle else None)
        for step in range(config.steps):
            for rank in range(config.world_size):
                share = starts(step, rank, config.world_size)
                ax.scatter(share, [step] * len(share), s=50, color=COLORS[rank], marker=MARKERS[rank], zorder=3,
                           label=f"process {rank}" if step == 0 else None)
            ax.scatter(starts(step), [step] * config.batch_size, s=190, facecolors="none", edgecolors=BLACK,
                       label="one process" if step == 0 else None)

        started = time.perf_counter()
        for step in range(100):
            inputs, _ = get_batch(tokens, config.seed, step, config.batch_size, config.block_size)
        milliseconds = (time.perf_counter() - started) * 10
        print(f"a batch of {tuple(inputs.shape)} from the shards takes {milliseconds:.2f} ms; the last begins "
              f"{tokenizer.decode(inputs[0, :12].tolist())!r}")

    for i, border in enumerate(itertools.accumulate(header.n_tokens for header in headers[:-1])):
        ax.axvline(border, color="grey", linestyle=":", linewidth=1.5, label="border of two shards" if i == 0 else None)
    ax.set(xlabel="place of the window in the training tokens", ylabel="step", ylim=(config.steps - 0.4, -0.6),
           yticks=range(config.steps))
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    path = save_figure(
        fig, figure_path(__file__, "token_dataset", config.quick), title="The windows of each step, process by process",
        caption=f"Each row is a step: {config.batch_size} windows of {config.block_size} of the {len(tokens):,} tokens, "
                f"shared by {config.world_size} processes. Rings: one process that reads the whole batch reads the same. "
                f"Crosses: so does a run that starts at step {middle}. Windows lie anywhere, in any shard.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
