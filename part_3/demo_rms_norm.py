"""Lesson 3.1 - does a model train as well with RMSNorm as with LayerNorm?

Trains the same small model with either norm, on the same batches, from three seeds; both have the same number of weights
(LayerNorm goes without its bias). What to see: the loss curves lie within each other's bands, and the gradients of all
layers have the same size: centring the vectors bought nothing. Whether RMSNorm is faster is a question of kernels: torch
has one for LayerNorm on the CPU, and puts RMSNorm together from several operations.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.plotting import BLUE, ORANGE, band, figure_path, plt, save_figure
from part_3.side_by_side import ComparisonConfig, compare, describe, step_time_ratios

VARIANTS = {"LayerNorm": dict(norm="layernorm"), "RMSNorm": dict(norm="rmsnorm")}


@dataclass(frozen=True)
class Config(ComparisonConfig):
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2)


def gradient_norm_by_layer(model):
    """The norm of each block's gradient: a list of L."""
    return [torch.stack([weight.grad.norm() for weight in block.parameters()]).norm().item() for block in model.blocks]


def main(config):
    results = compare(config, VARIANTS, observe=gradient_norm_by_layer)
    fig, (ax_loss, ax_gradient, ax_time) = plt.subplots(1, 3, figsize=(12, 4.3), width_ratios=(3, 2, 2))
    for (name, runs), color, line in zip(results.items(), (ORANGE, BLUE), ("-", "--")):
        late = len(runs.steps) // 5  # the steep first fifth would hide the bands
        band(ax_loss, runs.steps[late:], [losses[late:] for losses in runs.val_loss], color=color, linestyle=line,
             label=name)
        gradients = torch.tensor(runs.observed).mean(dim=1)  # (n_seed, steps, L) -> (n_seed, L)
        band(ax_gradient, range(1, config.n_layer + 1), gradients, color=color, linestyle=line, marker="o")
        print(describe(name, runs))
    ratios = step_time_ratios(results["RMSNorm"], results["LayerNorm"])
    print(f"a step with RMSNorm takes {', '.join(f'{ratio:.3f}' for ratio in ratios)} times as long (seeds)")
    ax_time.bar(range(config.n_seed), ratios, color=BLUE)
    ax_time.axhline(1, color=ORANGE)
    ax_loss.set(xlabel="optimizer step", ylabel="validation loss (nats per byte)", title="loss after the first fifth")
    ax_loss.legend()
    ax_gradient.set(xlabel="layer", ylabel="gradient norm", title="gradient of each block", ylim=(0, None),
                    xticks=range(1, config.n_layer + 1))
    ax_time.set(xlabel="seed", xticks=range(config.n_seed), ylabel="RMSNorm / LayerNorm", title="time of a training step")
    path = save_figure(
        fig, figure_path(__file__, "rms_norm", config.quick), title="LayerNorm and RMSNorm train alike",
        caption=f"Two models that differ in nothing but the norm, {config.n_seed} seeds on the same batches: mean, and band "
                "from lowest to highest. Left: the losses lie within each other's bands. Middle: so do the gradients "
                "of all layers (mean of the second half of training). Right: how much longer a step takes, median ratio of "
                "steps taken in turn.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
