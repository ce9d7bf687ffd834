"""Lesson 5.3 - what do experts buy? Dense and mixture-of-experts models, compared by tokens, by FLOPs and by the clock.

Trains three models from three seeds on the same batches: a dense one; one with experts, of which each token uses as many
weights, so the same FLOPs; and a dense one with as many weights as that has in all. What to see: left, whether the experts
are closer to the large model than to the small one; middle, that they need the FLOPs of the small one; right, what
dispatching costs on this machine at this size.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.plotting import BLUE, GREEN, ORANGE, band, figure_path, plt, save_figure
from part_3.side_by_side import compare, describe, step_time_ratios
from part_4.run_logger import active_params, step_flops
from part_5.expert_comparison import ExpertComparisonConfig
from part_5.hybrid import after_update, auxiliary_loss


@dataclass(frozen=True)
class Config(ExpertComparisonConfig):
    steps: int = option(300, "optimizer steps of each run")
    batch_size: int = option(16, "windows a step")
    lr: float = option(1e-3, "highest learning rate")
    d_model: int = option(96, "model width")
    d_hidden: int = option(96, "inner width of the small dense model's feed-forward layers; an expert's is this over top_k")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, d_model=16, n_seed=2)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "d_hidden")

    def model_config(self, **changes):
        return super().model_config(**dict(d_hidden=self.d_hidden) | changes)


def main(config):
    large = config.n_expert * config.build_model().config.d_expert
    variants = {"dense, same active weights": dict(dense=True), "experts": {},
                "dense, same weights in all": dict(dense=True, d_hidden=large)}
    results = compare(config, variants, auxiliary_loss=auxiliary_loss, after_update=after_update)
    fig, axes = plt.subplots(1, 3, figsize=(12, 4.6), sharey=True)
    tokens_per_step = config.batch_size * config.block_size
    for (name, runs), color, line in zip(results.items(), (ORANGE, BLUE, GREEN), (":", "-", "--")):
        model = runs.models[0]
        late = len(runs.steps) // 4  # the steep first quarter would hide the bands
        steps, losses = np.array(runs.steps[late:]), [losses[late:] for losses in runs.val_loss]
        flops = step_flops(model, tokens_per_step, config.block_size)
        seconds = mean(np.median(times) for times in runs.seconds)
        for ax, factor in zip(axes, (tokens_per_step / 1e3, flops / 1e12, seconds)):
            band(ax, steps * factor, losses, color=color, linestyle=line, label=name)
        print(f"{describe(name, runs)}   {active_params(model):,} active, {flops / tokens_per_step / 1e6:.2f} MFLOP a token")
    for name in list(variants)[1:]:
        ratios = step_time_ratios(results[name], results[next(iter(variants))])
        print(f"a step of '{name}' takes {', '.join(f'{ratio:.2f}' for ratio in ratios)} times the small dense model's")
    axes[0].set(xlabel="tokens (thousands)", ylabel="validation loss (nats per byte)", title="by tokens")
    axes[1].set(xlabel="training FLOPs (TFLOP)", title="by FLOPs")
    axes[2].set(xlabel="training time (s)", title="by the clock, here")
    axes[0].legend(fontsize=10)
    weights = [runs.models[0].n_params() for runs in results.values()]
    active = active_params(results["experts"].models[0])
    path = save_figure(
        fig, figure_path(__file__, "comparison", config.quick), title="Experts: more weights for the same FLOPs",
        caption=f"The same text and batches, {config.n_seed} seeds, mean and range. Dotted: dense, {weights[0]:,} weights. "
                f"Solid: {config.n_expert} experts a layer, {config.top_k} for each token, {weights[1]:,} weights of which "
                f"{active:,} are active. Dashed: dense, {weights[2]:,} weights. The same losses over the tokens read, the "
                "FLOPs needed, and the seconds of the median step.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
