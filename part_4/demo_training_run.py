"""Lesson 4.5 - is this run healthy? The report of a run of part_4/train.py, drawn from its metrics.jsonl.

What to see: where the losses part, the model begins to know the training text by heart; the gradient norm is high at first
and then calm, and clipping is the exception; a step changes the weights by a few hundredths at most, following the rate;
tokens a second do not sag; and how much of the machine's fastest matrix product the training uses (MFU).
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import json
import math
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, figure_path, plt, save_figure
from part_2.run_directory import read_records
from part_4.run_config import RUNS


@dataclass(frozen=True)
class Config:
    run: str = option(str(RUNS / "train"), "the run directory to report on")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(run=str(RUNS / "quick"))


def main(config):
    if not (Path(config.run) / "metrics.jsonl").exists():
        raise InputError(f"there is no run in {config.run}; make it with: python3 part_4/train.py --out {config.run}")
    flags = json.loads((Path(config.run) / "config.json").read_text(encoding="utf-8"))
    metrics = read_records(config.run, "metrics.jsonl")
    training = [record for record in metrics if "loss" in record]
    validation = [record for record in metrics if "val_loss" in record]
    skipped = [record["step"] for record in metrics if "skipped" in record]
    if not training or not validation or "update_ratio" not in training[0]:
        raise InputError(f"the run in {config.run} has not logged anything yet, or is none of part_4/train.py")
    steps = [record["step"] for record in training]

    fig, axes = plt.subplots(2, 3, figsize=(13, 7), sharex=True)
    panels = dict(zip(("loss", "grad_norm", "update_ratio", "lr", "tokens_per_second", "mfu"), axes.flat))
    panels["loss"].plot(steps, [r["loss"] for r in training], color=ORANGE, linewidth=1.2, label="training (a batch)")
    panels["loss"].plot([r["step"] for r in validation], [r["val_loss"] for r in validation], color=BLUE, marker="o",
                        label="validation (fixed windows)")
    panels["loss"].set(title="loss", ylabel="nats per token")
    drawn = (("grad_norm", PURPLE, "gradient norm, before clipping", "norm"),
             ("update_ratio", RED, "change of the weights in a step", "norm of change / norm of weights"),
             ("lr", GREEN, "learning rate", "learning rate"),
             ("tokens_per_second", SKY, "speed", "tokens per second"), ("mfu", BLACK, "MFU", "share of matmul peak"))
    for name, color, title, label in drawn:
        panels[name].plot(steps, [r[name] for r in training], color=color)
        panels[name].set(title=title, ylabel=label)
    panels["grad_norm"].axhline(flags["grad_clip"], color=BLACK, linestyle=":", label="clipped to")
    panels["grad_norm"].set(yscale="log")
    panels["update_ratio"].axhline(1e-3, color=BLACK, linestyle=":", label="a thousandth")
    panels["update_ratio"].set(yscale="log")
    for name in ("tokens_per_second", "mfu"):
        panels[name].set(ylim=(0, None))
    for step in skipped:
        panels["loss"].axvline(step, color=RED, alpha=0.5)
    for name in ("loss", "grad_norm", "update_ratio"):
        panels[name].legend()
    for ax in axes[1]:
        ax.set(xlabel="optimizer step")

    last, clipped = validation[-1], sum(r["grad_norm"] > flags["grad_clip"] for r in training) / len(training)
    speed, mfu = (median(record[name] for record in training) for name in ("tokens_per_second", "mfu"))
    print(f"step {last['step']} of {flags['steps']}: validation loss {last['val_loss']:.3f} nats per token (perplexity "
          f"{math.exp(last['val_loss']):.1f}), after {last['seconds']:.0f} s of training")
    print(f"clipped in {clipped:.0%} of the logged steps, {len(skipped)} updates skipped; median speed {speed:,.0f} "
          f"tokens/s, {mfu:.0%} of the matmul peak")
    print(save_figure(
        fig, figure_path(__file__, "training_run", config.quick), title="The dashboard of a training run",
        caption=f"All from metrics.jsonl. Upper row: the loss ends at {last['val_loss']:.2f} nats per token; the gradient "
                f"norm is above the clipping threshold in {clipped:.0%} of the logged steps; a step changes the weights by "
                "a fraction that follows the learning rate. Lower row: the learning rate warms up and falls; speed and MFU "
                "are the means between two lines of the log: dips are other work on the machine. Red lines, if any, are "
                "updates that were skipped because something was no number.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
