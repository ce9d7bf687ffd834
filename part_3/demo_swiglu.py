"""Lesson 3.3 - is a gated feed-forward layer worth its third matrix?

Trains the same small model with the GELU layer of Part 1 and with SwiGLU, on the same batches, from three seeds. SwiGLU's
hidden width is 8/3 C instead of 4C, so that both have the same number of weights to within a half percent. What to see: the
gap between the curves against the width of the bands.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.plotting import BLUE, GREEN, ORANGE, band, figure_path, plt, save_figure
from part_1.feed_forward import gelu
from part_3.side_by_side import ComparisonConfig, compare, describe, step_time_ratios


@dataclass(frozen=True)
class Config(ComparisonConfig):
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2)


def main(config):
    # Not rounded up, as it usually is: here the number of weights shall be the same.
    results = compare(config, {"GELU": dict(mlp="gelu"), "SwiGLU": dict(mlp="swiglu", d_hidden=8 * config.d_model // 3)})
    fig, (ax_gate, ax_loss, ax_gap) = plt.subplots(1, 3, figsize=(12, 4.3), width_ratios=(2, 3, 2))
    z = torch.linspace(-4, 4, 200)
    ax_gate.plot(z, gelu(z), color=ORANGE, label="GELU(z)")
    ax_gate.plot(z, F.silu(z), color=BLUE, linestyle="--", label="SiLU(z): gate, up = 1")
    ax_gate.plot(z, -F.silu(z), color=GREEN, linestyle=":", label="SiLU(z): gate, up = -1")
    ax_gate.set(xlabel="z", ylabel="output", title="one hidden unit")
    ax_gate.legend(loc="upper left", fontsize=9)
    for (name, runs), color, line in zip(results.items(), (ORANGE, BLUE), ("-", "--")):
        late = len(runs.steps) // 5  # the steep first fifth would hide the bands
        band(ax_loss, runs.steps[late:], [losses[late:] for losses in runs.val_loss], color=color, linestyle=line,
             label=f"{name}, {runs.models[0].n_params():,} weights")
        print(describe(name, runs))
    ratios = step_time_ratios(results["SwiGLU"], results["GELU"])
    print(f"a step with SwiGLU takes {', '.join(f'{ratio:.3f}' for ratio in ratios)} times as long (seeds)")
    ax_loss.set(xlabel="optimizer step", ylabel="validation loss (nats per byte)", title="loss after the first fifth")
    ax_loss.legend()
    gap = torch.tensor(results["GELU"].val_loss) - torch.tensor(results["SwiGLU"].val_loss)  # (n_seed, n_evals)
    band(ax_gap, results["GELU"].steps, gap, color=BLUE)
    ax_gap.axhline(0, color="black", linewidth=1)
    ax_gap.set(xlabel="optimizer step", ylabel="GELU - SwiGLU (nats per byte)", title="SwiGLU's lead, seed by seed")
    path = save_figure(
        fig, figure_path(__file__, "swiglu", config.quick), title="GELU and SwiGLU with equal parameters",
        caption="Left: GELU answers z in one way; SwiGLU's answer is multiplied by a second projection, here 1 or -1. "
                f"Middle: the same model with either layer, {config.n_seed} seeds on the same batches, mean and range. "
                "Right: the difference with one seed and the same batches: above zero SwiGLU is ahead.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
