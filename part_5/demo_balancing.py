"""Lesson 5.1 - what does a router do when nothing keeps it in balance, and what do the remedies cost?

Trains the same small model with 8 experts a layer, 2 for each token, from three seeds on the same batches: without any
balancing, with noise on the router's logits, with the balance loss, with the balancing bias. The capacity of an expert is
1.25 times its even share, so imbalance costs dropped choices. What to see: in the upper row, which experts stay dark.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, band, figure_path, heatmap, plt, save_figure
from part_3.side_by_side import compare, describe
from part_5.expert_comparison import ExpertComparisonConfig
from part_5.hybrid import after_update, auxiliary_loss, moe_layers

VARIANTS = {"no balancing": {}, "noisy top-k": dict(noisy=True), "balance loss": dict(balance_weight=0.01),
            "bias": dict(bias_rate=0.01)}  # ten times DeepSeek-V3's rate: its training is some thousand times as long
STYLES = ((BLACK, ":"), (ORANGE, "-."), (BLUE, "-"), (GREEN, "--"))


@dataclass(frozen=True)
class Config(ExpertComparisonConfig):
    steps: int = option(160, "optimizer steps of each run")
    capacity_factor: float = option(1.25, "an expert takes this times its even share, and drops the rest")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, d_model=16, n_seed=2)

    def build_model(self, **changes):
        changes = dict(balance_weight=0.0, z_weight=0.0, capacity_factor=self.capacity_factor) | changes
        return super().build_model(**changes)


def main(config):
    loads, figures = defaultdict(list), defaultdict(list)  # of each model: the last layer's (E,), and all layers' figures

    def record(model):
        loads[model].append(moe_layers(model)[-1].load.numpy(force=True))
        figures[model].append(after_update(model))

    results = compare(config, VARIANTS, auxiliary_loss=auxiliary_loss, after_update=record, n_evals=1)
    fig = plt.figure(figsize=(10.4, 6.5))
    top, bottom = fig.subfigures(2, 1, height_ratios=(3, 4))
    ax_loads = top.subplots(1, len(VARIANTS), sharey=True)
    ax_entropy, ax_dropped, ax_loss = bottom.subplots(1, 3)
    late = config.steps // 5  # the last fifth of the steps
    for (name, runs), ax_load, (color, line) in zip(results.items(), ax_loads, STYLES):
        load = np.stack(loads[runs.models[0]], axis=1)  # (E, steps)
        load = load[load[:, -late - 1:].sum(axis=1).argsort()[::-1]] / load.mean(axis=0)  # the busiest at last on top
        load = np.stack([part.mean(axis=1) for part in np.array_split(load, min(40, config.steps), axis=1)], axis=1)
        image = heatmap(ax_load, load, xlabel="optimizer step", ylabel="", vmin=0, vmax=3, interpolation="nearest",
                        extent=(0, config.steps, config.n_expert, 0))
        ax_load.set(title=name, yticks=[])
        for key, ax in (("load_entropy", ax_entropy), ("dropped", ax_dropped)):
            series = np.array([[figure[key] for figure in figures[model]] for model in runs.models])  # (n_seed, steps)
            window = max(1, config.steps // 10)  # smoothed, so that four bands can be told apart
            series = np.stack([np.convolve(run, np.ones(window) / window, "valid") for run in series])
            band(ax, np.arange(series.shape[1]) + window / 2, series, color=color, linestyle=line, label=name)
        final = [losses[-1] for losses in runs.val_loss]
        ax_loss.plot(final, [name] * len(final), "o", color=color)
        ax_loss.plot(mean(final), name, "|", color=color, markersize=28)
        share = [mean(figure["dropped"] for figure in figures[model][-late - 1:]) for model in runs.models]
        print(f"{describe(name, runs)}   dropped at the end {', '.join(f'{value:.1%}' for value in share)}")
    ax_loads[0].set(ylabel=f"expert (of {config.n_expert})")
    top.colorbar(image, ax=ax_loads, label="load / even load")
    ax_entropy.set(xlabel="optimizer step", ylabel="entropy / ln E", title="entropy of the load")
    ax_dropped.set(xlabel="optimizer step", ylabel="share of the choices", title="dropped for lack of capacity")
    ax_dropped.set_ylim(0, 1.05)  # room for the legend above the curves
    ax_dropped.legend(fontsize=9, loc="upper right")
    ax_loss.set(xlabel="nats per byte", title="final validation loss, each seed", ylim=(len(VARIANTS) - 0.5, -0.5))
    path = save_figure(
        fig, figure_path(__file__, "balancing", config.quick), title="A router left alone, and three remedies",
        caption=f"Top: load of the last layer's {config.n_expert} experts over training, seed {config.seed}, the busiest at "
                "the end on top; dark experts get hardly a token, and what is brighter than "
                f"{config.capacity_factor:g} overflows. Bottom: entropy of the load (1 is even) and share of dropped "
                f"choices, means over the layers, {config.n_seed} seeds, mean and range, each point the mean of {window} "
                "steps; right: the loss that each seed ends at, with the mean as a bar.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
