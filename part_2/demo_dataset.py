"""Lesson 2.2 - what is in a batch, and does every part of the text have the same chance to be in one?

Draws one window with its targets, and counts how often each start is drawn from a short text. What to see: the targets
are the inputs shifted by one; every possible start is drawn equally often, the last one included, within the band that
chance allows (three standard deviations).
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.plotting import BLUE, ORANGE, SKY, figure_path, plt, save_figure
from part_2.byte_tokenizer import ByteTokenizer
from part_2.dataset import get_batch, n_windows

TEXT = "the next token is the target of every token before it"
WINDOW = 12


@dataclass(frozen=True)
class Config:
    n_batches: int = option(200, "batches to count")
    batch_size: int = option(256, "windows a batch")
    seed: int = option(0, "seed of the batches")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_batches=5)

    def __post_init__(self):
        check_positive(self, "n_batches", "batch_size")


def main(config):
    tokenizer = ByteTokenizer()
    tokens = tokenizer.encode_to_tensor(TEXT)
    generator = torch.Generator().manual_seed(config.seed)
    inputs, targets = get_batch(tokens, 1, WINDOW, generator)
    for name, row in (("inputs", inputs), ("targets", targets)):
        print(f"{name:8s} {tokenizer.decode(row[0].tolist())!r:16s} {row[0].tolist()}")

    # With the tokens 0, 1, 2, ... the first token of a window is its start.
    numbered = torch.arange(len(tokens))
    n_starts = n_windows(tokens, WINDOW)
    counts = torch.zeros(n_starts, dtype=torch.int64)
    for _ in range(config.n_batches):
        starts = get_batch(numbered, config.batch_size, WINDOW, generator)[0][:, 0]
        counts += torch.bincount(starts, minlength=n_starts)
    expected = config.n_batches * config.batch_size / n_starts
    deviation = (expected * (1 - 1 / n_starts)) ** 0.5
    print(f"{n_starts} possible starts, drawn {counts.min()} to {counts.max()} times each; expected {expected:.0f} "
          f"with a standard deviation of {deviation:.0f}")

    fig, (ax_window, ax_counts) = plt.subplots(1, 2, figsize=(11, 4))
    for y, (name, row, color) in enumerate((("targets", targets, ORANGE), ("inputs", inputs, SKY))):
        for x, id in enumerate(row[0].tolist()):
            x += name == "targets"  # drawn under the place where it stands in the text
            ax_window.add_patch(plt.Rectangle((x - 0.5, y - 0.4), 1, 0.8, facecolor=color, edgecolor="white"))
            ax_window.text(x, y, chr(id).replace(" ", "␣"), ha="center", va="center", family="monospace", size=14)
    ax_window.set(xlim=(-0.6, WINDOW + 0.6), ylim=(-0.8, 1.8), xlabel="place in the window (tokens)",
                  title="inputs and their targets")
    ax_window.set_yticks((0, 1), ("targets", "inputs"))
    ax_window.set_xticks(range(0, WINDOW + 1, 2))
    ax_window.grid(False)
    ax_counts.bar(range(n_starts), counts.tolist(), color=BLUE, width=0.8, label="drawn")
    ax_counts.axhspan(expected - 3 * deviation, expected + 3 * deviation, color=ORANGE, alpha=0.5, label="expected ± 3σ")
    ax_counts.set(xlabel="start of the window (token)", ylabel="times drawn", ylim=(0, expected * 1.6),
                  title="every start is equally likely")
    ax_counts.legend(loc="upper right", ncols=2)
    path = save_figure(
        fig, figure_path(__file__, "dataset", config.quick), title="Batches: windows of the text and what follows",
        caption="Left: the model reads the upper row and must say, at each place, the letter to the lower right: the same "
                "text shifted by one (␣ is a space). Right: windows start everywhere equally often, from the first "
                "possible place to the last.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
