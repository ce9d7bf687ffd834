"""Lesson 1.5 - what does GELU look like, how good is its tanh form, and what does the expansion buy?

Draws both forms of GELU beside ReLU, their difference, and how well a feed-forward layer learns a fixed random function
of its input as it is made wider (three seeds). What to see: GELU is a ReLU with a rounded corner that dips below zero; the
tanh form is off by less than a thousandth; a wider hidden layer fits better, at a cost that grows in proportion.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, ORANGE, SKY, figure_path, plt, save_figure
from part_1.feed_forward import FeedForward, gelu, gelu_tanh


@dataclass(frozen=True)
class Config:
    d_model: int = option(4, "width C of the learned function")
    steps: int = option(500, "training steps a fit")
    lr: float = option(1e-2, "learning rate")
    seed: int = option(0, "first of the three seeds")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=5)

    def __post_init__(self):
        check_positive(self, "d_model", "steps", "lr")


def fit(expansion, seed, config):
    """The share of a random function's variance that a layer of this expansion has not learned after `steps` batches."""
    set_seed(seed)
    inner, outer = 3 * torch.randn(config.d_model, 32) / config.d_model**0.5, torch.randn(32, config.d_model) / 32**0.5

    def examples(n):
        x = torch.randn(n, config.d_model)
        return x, torch.tanh(x @ inner) @ outer

    layer = FeedForward(config.d_model, expansion * config.d_model)
    optimizer = torch.optim.Adam(layer.parameters(), lr=config.lr)
    for _ in range(config.steps):
        x, y = examples(256)
        loss = (layer(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = examples(4096)
    with torch.no_grad():
        return ((layer(x) - y).square().mean() / y.var()).item()


def main(config):
    fig, (ax_shape, ax_difference, ax_fit) = plt.subplots(1, 3, figsize=(12, 4.3))
    x = torch.linspace(-4, 4, 401)
    ax_shape.plot(x, x.relu(), color=ORANGE, linestyle="--", label="ReLU")
    ax_shape.plot(x, gelu(x), color=BLUE, label="GELU (exact)")
    ax_shape.plot(x, gelu_tanh(x), color=SKY, linestyle=":", linewidth=3, label="GELU (tanh)")
    ax_shape.set(xlabel="input", ylabel="output", title="the bend")
    ax_shape.legend()
    difference = gelu_tanh(x.double()) - gelu(x.double())
    ax_difference.plot(x, difference * 1e4, color=BLUE)
    ax_difference.set(xlabel="input", ylabel="tanh form - exact (1e-4)", title="two forms of GELU")
    print(f"largest difference between the two forms of GELU: {difference.abs().max():.1e}")

    expansions = (1, 2, 4, 8, 16)
    errors = torch.tensor([[fit(e, config.seed + s, config) for s in range(3)] for e in expansions])  # (5, 3)
    for expansion, row in zip(expansions, errors):
        print(f"expansion {expansion}: unexplained variance {row.mean():.3f} (three seeds: {row.min():.3f}-{row.max():.3f})")
    ax_fit.plot(expansions, errors.mean(1), color=BLUE, marker="o", label="mean")
    ax_fit.fill_between(expansions, errors.amin(1), errors.amax(1), color=BLUE, alpha=0.25, label="range of 3 seeds")
    ax_fit.set(xscale="log", xlabel="expansion (hidden width / C)", ylabel="unexplained variance", ylim=(0, None),
               title="what the expansion buys")
    ax_fit.set_xticks(expansions, expansions)
    ax_fit.minorticks_off()
    ax_fit.legend()
    path = save_figure(
        fig, figure_path(__file__, "feed_forward", config.quick), title="The feed-forward layer: GELU and expansion",
        caption="Left: GELU is a ReLU with a rounded corner. Middle: its tanh form is off by a few ten-thousandths at most. "
                "Right: the share of a random function's variance that a layer of each width fails to learn in the same "
                "number of steps; Transformers take 4.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
