"""Lesson 5.3 - which layers should have experts?

Trains the same model from three seeds with experts in every layer, in every second one, in all but the first, and beside the
dense layers, a blend of both. What to see: how close together the final losses are compared with the spread of the seeds,
what each arrangement costs in weights, and which layer's load takes longest to become even.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import itertools
from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import matplotlib
import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, SEQUENTIAL, SKY, band, figure_path, plt, save_figure
from part_3.side_by_side import compare, describe
from part_4.run_logger import active_params
from part_5.balancing import load_entropy
from part_5.expert_comparison import ExpertComparisonConfig
from part_5.hybrid import DenseAndMoE, after_update, auxiliary_loss, moe_layers
from part_5.moe import MoE

VARIANTS = {"dense": dict(dense=True), "every layer": dict(moe_every=1), "every 2nd": dict(moe_every=2),
            "all but first": dict(first_dense=1)}
KINDS = {"dense": "#DDDDDD", "experts": BLUE, "both": SKY}


@dataclass(frozen=True)
class Config(ExpertComparisonConfig):
    steps: int = option(90, "optimizer steps of each run")
    batch_size: int = option(8, "windows a step")
    lr: float = option(2e-3, "highest learning rate")
    n_layer: int = option(4, "Transformer blocks")
    alpha: float = option(0.5, "weight of the dense layer in the blend")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2)

    def __post_init__(self):
        super().__post_init__()
        if self.n_layer < 2:
            raise InputError(f"--n_layer must be at least 2, not {self.n_layer}: one model has experts in every 2nd")
        with torch.device("meta"):
            for changes in self.variants().values():
                self.build_model(**changes)  # or refuse

    def variants(self):
        return VARIANTS | {"blend": dict(alpha=self.alpha)}


def kind(feed_forward):
    """Which of KINDS a block's feed-forward layer is."""
    return "both" if isinstance(feed_forward, DenseAndMoE) else "experts" if isinstance(feed_forward, MoE) else "dense"


def main(config):
    entropies = defaultdict(list)  # of each model, of each step: (layers with experts,)

    def record(model):
        if layers := moe_layers(model):
            entropies[model].append([load_entropy(layer.load).item() for layer in layers])
        after_update(model)

    results = compare(config, config.variants(), auxiliary_loss=auxiliary_loss, after_update=record, n_evals=1)
    fig, (ax_plan, ax_loss, ax_load) = plt.subplots(1, 3, figsize=(12, 4.6), width_ratios=(4, 3, 4))
    for place, (name, runs) in enumerate(results.items()):
        model = runs.models[0]
        for layer, block in enumerate(model.blocks):
            ax_plan.add_patch(plt.Rectangle((place - 0.4, layer + 0.05), 0.8, 0.9, color=KINDS[kind(block.feed_forward)]))
        ax_plan.text(place, config.n_layer + 0.1, f"{model.n_params() / 1e3:.0f} k\n{active_params(model) / 1e3:.0f} k",
                     ha="center", va="bottom", fontsize=9)
        final = [losses[-1] for losses in runs.val_loss]
        ax_loss.plot(final, [place] * len(final), "o", color=BLACK)
        ax_loss.plot(mean(final), place, "|", color=BLACK, markersize=24)
        print(f"{describe(name, runs)}   {active_params(model):,} active")
    ax_plan.set(xlim=(-0.5, len(results) - 0.5), ylim=(0, config.n_layer + 0.9), ylabel="block, from the bottom",
                yticks=[layer + 0.5 for layer in range(config.n_layer)], yticklabels=range(config.n_layer))
    ax_plan.set_title("weights in all, and for a token", fontsize=11)
    ax_plan.set_xticks(range(len(results)), [name.replace(" ", "\n") for name in results], fontsize=9)
    ax_plan.grid(False)
    ax_plan.legend(handles=[matplotlib.patches.Patch(color=color, label=name) for name, color in KINDS.items()], fontsize=9,
                   loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    ax_loss.set(yticks=range(len(results)), yticklabels=results, ylim=(len(results) - 0.5, -0.5), xlabel="nats per byte",
                title="final validation loss, each seed")
    window = max(1, config.steps // 15)
    series = np.array([entropies[model] for model in results["every layer"].models])  # (n_seed, steps, layers)
    colors = plt.colormaps[SEQUENTIAL](np.linspace(0, 0.9, series.shape[2]))
    for layer, (color, line) in enumerate(zip(colors, itertools.cycle((":", "-.", "--", "-")))):
        smooth = np.stack([np.convolve(run, np.ones(window) / window, "valid") for run in series[:, :, layer]])
        band(ax_load, np.arange(smooth.shape[1]) + window / 2, smooth, color=color, linestyle=line, label=f"block {layer}")
    ax_load.set(xlabel="optimizer step", ylabel="entropy of the load / ln E", title="balance in every layer")
    ax_load.legend(fontsize=9, loc="lower right")
    path = save_figure(
        fig, figure_path(__file__, "hybrid", config.quick), title="Where the experts are",
        caption=f"Left: {len(results)} models of {config.n_layer} blocks and what stands behind the attention of each. An "
                f"expert is as wide as the dense layer over {config.top_k}, so all use about as many weights for a token "
                f"but the blend (alpha {config.alpha:g}), which uses two such layers' worth. Middle: final loss, "
                f"{config.n_seed} seeds, the bar is the mean. Right: entropy of each block's load where all have experts (1 "
                f"is even), mean and range, each point the mean of {window} steps.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
