"""Lesson 2.4 - how does a language model learn? The report of a run of part_2/train.py.

Draws the run's training and validation loss, learning rate and gradient norm, and what the model wrote along the way.
What to see: the loss starts near ln V, falls steeply while the model learns which letters are frequent, then slowly while
it learns words; the text goes from noise to letters, to words, to sentences that sound like the corpus.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import math
import re
import textwrap
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, figure_path, plt, save_figure
from part_2.run_directory import read_records
from part_2.train import RUNS


@dataclass(frozen=True)
class Config:
    run: str = option(str(RUNS / "train"), "the run directory to report on")
    n_samples: int = option(5, "samples to show, most of them from early in the run")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(run=str(RUNS / "quick"), n_samples=2)

    def __post_init__(self):
        if self.n_samples < 2:
            raise ValueError(f"--n_samples must be at least 2, not {self.n_samples}")


def draw_curves(metrics, config):
    training = [record for record in metrics if "loss" in record]
    validation = [record for record in metrics if "val_loss" in record]
    fig, (ax_loss, ax_small) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2))
    ax_loss.plot([r["step"] for r in training], [r["loss"] for r in training], color=ORANGE, alpha=0.7, linewidth=1.2,
                 label="training (one batch)")
    ax_loss.plot([r["step"] for r in validation], [r["val_loss"] for r in validation], color=BLUE, marker="o",
                 label="validation (fixed windows)")
    ax_loss.axhline(math.log(256), color=BLACK, linestyle=":", label="knowing nothing: ln V")
    ax_loss.set(xlabel="optimizer step", ylabel="loss (nats per byte)", title="loss", ylim=(0, None))
    ax_loss.legend()
    lines = ax_small.plot([r["step"] for r in training], [r["lr"] for r in training], color=GREEN, label="learning rate")
    ax_small.set(xlabel="optimizer step", ylabel="learning rate", title="schedule and gradient")
    ax_norm = ax_small.twinx()
    ax_norm.grid(False)
    ax_norm.spines["right"].set_visible(True)
    lines += ax_norm.plot([r["step"] for r in training], [r["grad_norm"] for r in training], color=PURPLE, linewidth=1.2,
                          label="gradient norm")
    ax_norm.set(ylabel="gradient norm before clipping", ylim=(0, None))
    ax_small.legend(handles=lines, loc="upper right")
    return save_figure(
        fig, figure_path(__file__, "training", config.quick), title="Training a tiny GPT, byte by byte",
        caption=f"Left: the loss starts at ln V and ends at {validation[-1]['val_loss']:.2f} nats per byte on text that was "
                "not trained on; where the two curves part, the model begins to know the training text by heart. Right: "
                "the learning rate warms up and follows a cosine; the gradient norm tells whether the run is healthy.",
        command=command_line(__file__, config))


def draw_samples(samples, config):
    places = np.unique(np.geomspace(1, len(samples), config.n_samples).round().astype(int))  # early on, more changes
    chosen = [samples[place - 1] for place in places]
    fig, ax = plt.subplots(figsize=(11, 0.95 * len(chosen) + 0.5))
    ax.axis("off")
    ax.set(xlim=(0, 1), ylim=(len(chosen), -0.1))
    for row, record in enumerate(chosen):
        # Only printable ASCII: the figure's font lacks most of what an untrained model's bytes may spell.
        text = re.sub(r"[^ -~]", "?", " ".join(record["text"].split()))
        shown = "\n".join(textwrap.wrap(text.replace("$", r"\$"), 84)[:3])
        ax.text(0, row, f"step {record['step']}\n{record['val_loss']:.2f} nats", color=BLUE, va="top", weight="bold")
        ax.text(0.12, row, shown, family="monospace", va="top")
        print(f"step {record['step']:5d}  {text[:90]}")
    return save_figure(
        fig, figure_path(__file__, "training_samples", config.quick), title="What the model writes as it learns",
        caption="The model's own continuation of “The ” at temperature 0.8, along the run, with the validation loss at that "
                "step (white space folded; what is no printable ASCII is shown as ?). First noise, then frequent letters "
                "and spaces, then short words, then the vocabulary of the corpus.",
        command=command_line(__file__, config))


def main(config):
    metrics, samples = (read_records(config.run, name) for name in ("metrics.jsonl", "samples.jsonl"))
    print(draw_curves(metrics, config))
    print(draw_samples(samples, config))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
