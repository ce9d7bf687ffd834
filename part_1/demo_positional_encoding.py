"""Lesson 1.1 - what do the position vectors of two tokens say about the distance between them?

Draws the sinusoidal table, and the dot product of every pair of rows against the distance between them. What to see: for
the sinusoidal table a single curve, because the product depends on distance alone. For a learned table before training a
cloud around zero: it has to find out about distance from data.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, DIVERGING, ORANGE, figure_path, heatmap, plt, save_figure
from part_1.positional_encoding import LearnedPositionalEncoding, sinusoidal_table


@dataclass(frozen=True)
class Config:
    n_positions: int = option(96, "positions T in the table")
    d_model: int = option(64, "width C, even")
    base: float = option(10000.0, "the slowest pair turns once in about 2 pi base positions")
    seed: int = option(0, "seed of the learned table")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_positions=16, d_model=8)

    def __post_init__(self):
        check_positive(self, "n_positions", "d_model", "base")
        sinusoidal_table(1, self.d_model, self.base)  # refuses an odd width


def main(config):
    set_seed(config.seed)
    sinusoidal = sinusoidal_table(config.n_positions, config.d_model, config.base)
    learned = LearnedPositionalEncoding(config.n_positions, config.d_model).weight.detach()

    fig, (ax_table, ax_dots) = plt.subplots(1, 2, figsize=(10, 4.5))
    image = heatmap(ax_table, sinusoidal, xlabel="column of the encoding", ylabel="position (tokens)", cmap=DIVERGING,
                    vmin=-1, vmax=1)
    ax_table.set_title("sinusoidal table")
    fig.colorbar(image, ax=ax_table, label="value")

    positions = torch.arange(config.n_positions)
    distance = (positions[None, :] - positions[:, None]).flatten()  # j - i of every pair of rows
    for name, table, color in (("learned, untrained", learned, ORANGE), ("sinusoidal", sinusoidal, BLUE)):
        products = (table @ table.T).flatten() / config.d_model
        ax_dots.scatter(distance, products, s=5, color=color, label=name, rasterized=True)
        spread = max(products[distance == d].std(correction=0).item() for d in distance.unique())
        print(f"{name:20s} largest spread of the dot product at one distance: {spread:.6f}")
    ax_dots.set(xlabel="distance between the positions (tokens)", ylabel="dot product / width", title="all pairs of rows",
                ylim=(None, 2.1))
    ax_dots.legend(loc="upper left", markerscale=4)
    path = save_figure(
        fig, figure_path(__file__, "positional_encoding", config.quick), title="Positions as vectors",
        caption="Left: each row is one position, each pair of columns a clock hand; the left ones turn fast. Right: the "
                "sinusoidal dot products of all pairs lie on one curve: the dot product depends on the distance alone. An "
                "untrained learned table knows nothing of distance.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
