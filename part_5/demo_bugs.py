"""Lesson 5.3 - what does the classic mistake of this part look like?

Trains the same small model with 8 experts a layer twice on the same batches: with the balance loss, and with one that is
logged but not added to what is minimised. The capacity of an expert is 1.25 times its even share. What to see: left, how
much the busiest experts get and the others do not; middle, the choices that this costs; right, how little the loss tells.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, RED, band, figure_path, plt, save_figure
from part_3.side_by_side import compare
from part_5.bugs import BUGS
from part_5.expert_comparison import ExpertComparisonConfig
from part_5.hybrid import after_update, auxiliary_loss, moe_layers

RIGHT, WRONG = dict(color=BLUE, linestyle="-", label="right"), dict(color=RED, linestyle="--", label="wrong")
[BUG] = BUGS


@dataclass(frozen=True)
class Config(ExpertComparisonConfig):
    steps: int = option(120, "optimizer steps of each run")
    n_seed: int = option(2, "seeds, i.e. runs of each variant")
    capacity_factor: float = option(1.25, "an expert takes this times its even share, and drops the rest")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=5, batch_size=2, block_size=16, d_model=16)

    def build_model(self, **changes):
        return super().build_model(**dict(capacity_factor=self.capacity_factor) | changes)


def train(config):
    """Train from each seed. Returns the Runs, the share of choices dropped at each step (n_seed, steps), and how often each
    expert of the last layer was chosen in the last fifth of the steps over the even load (n_seed, E), the busiest first."""
    loads, dropped = defaultdict(list), defaultdict(list)

    def record(model):
        loads[model].append(moe_layers(model)[-1].load.numpy(force=True))
        dropped[model].append(after_update(model)["dropped"])

    [runs] = compare(config, {"run": {}}, auxiliary_loss=auxiliary_loss, after_update=record).values()
    late = -(-config.steps // 5)
    load = np.array([np.sum(loads[model][-late:], axis=0) for model in runs.models])
    return runs, np.array([dropped[model] for model in runs.models]), -np.sort(-load / load.mean(axis=1, keepdims=True))


def main(config):
    results = [(train(config), RIGHT)]
    with BUG.installed():
        results.append((train(config), WRONG))
    fig, (ax_load, ax_dropped, ax_loss) = plt.subplots(1, 3, figsize=(13, 4.4))
    late = -(-config.steps // 5)
    found = [(load[:, 0].mean(), dropped[:, -late:].mean(), mean(losses[-1] for losses in runs.val_loss))
             for (runs, dropped, load), _ in results]
    print(BUG.describe(*(f"the busiest expert gets {busiest:.2f} times its even share, {lost:.1%} of the choices dropped, "
                         f"validation loss {loss:.3f} nats per byte" for busiest, lost, loss in found)))
    for (runs, dropped, load), style in results:
        band(ax_load, range(1, config.n_expert + 1), load, marker="o", **style)
        band(ax_dropped, range(config.steps), dropped, **style)
        band(ax_loss, runs.steps, runs.val_loss, **style)
    ax_load.axhline(1, color=BLACK, linestyle=":", linewidth=1, label="even")
    ax_load.set(xlabel="expert of the last layer, busiest first", ylabel="load / even load", title=BUG.name, ylim=(0, None))
    ax_dropped.set(xlabel="optimizer step", ylabel="share of the choices", title="dropped for lack of capacity")
    ax_loss.set(xlabel="optimizer step", ylabel="validation loss (nats per byte)", title="the loss")
    for ax in (ax_load, ax_dropped, ax_loss):
        ax.legend()
    print(save_figure(
        fig, figure_path(__file__, "bugs", config.quick), title="A mistake of Part 5 beside the right run",
        caption=f"With the balance loss, and with one that is logged but not added; {config.n_seed} seeds on the same "
                f"batches, mean and range. Left: load of the last layer's {config.n_expert} experts in the last fifth of "
                f"the steps; the busiest gets {found[0][0]:.2f} times its even share (right), {found[1][0]:.2f} times "
                f"(wrong). Middle: share of choices that found no room, all layers; in the last fifth {found[0][1]:.1%} and "
                f"{found[1][1]:.1%}. Right: validation loss, at the end {found[0][2]:.3f} and {found[1][2]:.3f}.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
