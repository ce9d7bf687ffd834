"""Lesson 1.3 - why are attention scores divided by sqrt(D)?

For random queries and keys of growing width D, with and without the division: how large the largest weight of a row is,
and how much of the softmax's gradient is left (the Frobenius norm of its Jacobian, diag(a) - a a^T). What to see: without
the division the softmax saturates as D grows: in most rows one key takes everything and hardly any gradient is left, while
the few undecided rows pass on a very large one. (For the narrowest heads the undivided Jacobian is even larger.)
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_1.single_head import scaled_dot_product_attention


@dataclass(frozen=True)
class Config:
    n_tokens: int = option(32, "keys a query chooses among")
    n_queries: int = option(512, "random queries averaged over")
    max_width: int = option(2048, "largest head width D; the smallest is 2, each next one twice as wide")
    seed: int = option(0, "seed of the random vectors")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_queries=16, max_width=64)

    def __post_init__(self):
        check_positive(self, "n_tokens", "n_queries")
        if self.max_width < 2:
            raise ValueError(f"--max_width must be at least 2, not {self.max_width}")


def jacobian_norm(weights):
    """Frobenius norm of the softmax's Jacobian at each row of weights. weights: (N, T). Returns (N,)."""
    jacobian = torch.diag_embed(weights) - weights[:, :, None] * weights[:, None, :]  # (N, T, T)
    return jacobian.flatten(1).norm(dim=1)


def main(config):
    set_seed(config.seed)
    widths = [2**i for i in range(1, config.max_width.bit_length())]
    fig, (ax_weight, ax_gradient) = plt.subplots(1, 2, figsize=(10, 4.5))
    for name, color, marker in (("divided by sqrt(D)", BLUE, "o"), ("not divided", ORANGE, "s")):
        largest, gradient = [], []
        for width in widths:
            query, key = torch.randn(config.n_queries, width), torch.randn(config.n_tokens, width)
            scale = None if color == BLUE else 1.0
            _, weights = scaled_dot_product_attention(query, key, key, scale=scale)  # (N, T)
            largest.append(weights.amax(dim=1).mean())
            gradient.append(jacobian_norm(weights).mean())
        ax_weight.plot(widths, largest, marker=marker, color=color, label=name)
        ax_gradient.plot(widths, gradient, marker=marker, color=color, label=name)
        print(f"{name:20s} D = {widths[-1]}: largest weight {largest[-1]:.3f}, gradient norm {gradient[-1]:.4f}")
    ax_weight.axhline(1 / config.n_tokens, color="black", linestyle=":", label=f"uniform, 1/{config.n_tokens}")
    ax_weight.set(xscale="log", ylim=(0, 1.05), xlabel="head width D", ylabel="largest weight of a row", title="saturation")
    ax_gradient.set(xscale="log", ylim=(0, None), xlabel="head width D", ylabel="norm of the softmax's Jacobian",
                    title="what is left of the gradient")
    ax_weight.legend(loc="center right")
    path = save_figure(
        fig, figure_path(__file__, "single_head", config.quick), title="Why scores are divided by sqrt(D)",
        caption="Undivided scores have variance D: as heads get wider the softmax puts all weight on one key (left) and its "
                "gradient shrinks (right; for narrow heads it is first larger). Divided by sqrt(D), neither depends on the "
                "width.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
