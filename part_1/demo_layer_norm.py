"""Lesson 1.6 - why do deep stacks need residual connections and norms?

A stack of 24 feed-forward layers, untrained, in the four combinations of residual and LayerNorm: the size of the signal
after each layer, the norm of the gradient at each layer's weights on the way back, and how alike the vectors of different
tokens have become (five seeds). What to see: in the plain stack the input fades within a few layers, only the biases are
left, all tokens become the same, and the gradient shrinks by a fixed factor a layer. A norm keeps signal and gradient
alive, but tokens still grow alike. With the residual connection they stay different, and the gradient reaches the first
layer at full size.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, GREEN, ORANGE, PURPLE, figure_path, plt, save_figure
from part_1.feed_forward import FeedForward
from part_1.layer_norm import LayerNorm

STYLES = {(False, False): ("plain", ORANGE, "-"), (False, True): ("norm", PURPLE, "--"),
          (True, False): ("residual", GREEN, "-."), (True, True): ("residual + norm", BLUE, "-")}


@dataclass(frozen=True)
class Config:
    n_layer: int = option(24, "layers in the stack")
    d_model: int = option(64, "width C")
    n_seed: int = option(5, "seeds averaged over (geometric mean)")
    seed: int = option(0, "the first seed")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_layer=4, d_model=8, n_seed=1)

    def __post_init__(self):
        check_positive(self, "n_layer", "d_model", "n_seed")


def through_the_stack(residual, norm, seed, config):
    """Three (L,) tensors: the signal's root mean square after each layer, the gradient's norm at each layer's weights, and
    the mean cosine between different tokens' vectors after each layer."""
    set_seed(seed)
    layers = nn.ModuleList(FeedForward(config.d_model) for _ in range(config.n_layer))
    norms = nn.ModuleList(LayerNorm(config.d_model) if norm else nn.Identity() for _ in layers)
    x, target = torch.randn(2, 128, config.d_model)  # 128 tokens
    signal, alike = [], []
    for layer, normalise in zip(layers, norms):
        y = layer(normalise(x))
        x = x + y if residual else y
        signal.append(x.detach().square().mean().sqrt())
        directions = nn.functional.normalize(x.detach(), dim=1)
        alike.append((directions @ directions.T).fill_diagonal_(0).sum() / (len(x) * (len(x) - 1)))
    (x * target).sum().backward()  # any loss will do: only how its gradient travels counts
    gradient = [layer.expand.weight.grad.norm() for layer in layers]
    return torch.stack(signal), torch.stack(gradient), torch.stack(alike)


def main(config):
    fig, (ax_signal, ax_gradient, ax_alike) = plt.subplots(1, 3, figsize=(12, 4.3), sharex=True)
    depth = range(1, config.n_layer + 1)
    for (residual, norm), (name, color, line) in STYLES.items():
        runs = [through_the_stack(residual, norm, config.seed + s, config) for s in range(config.n_seed)]
        signals, gradients, alike = (torch.stack(part) for part in zip(*runs))
        signal, gradient = signals.log().mean(0).exp(), gradients.log().mean(0).exp()
        ax_signal.semilogy(depth, signal, color=color, linestyle=line, label=name)
        ax_gradient.semilogy(depth, gradient, color=color, linestyle=line, label=name)
        ax_alike.plot(depth, alike.mean(0), color=color, linestyle=line)
        print(f"{name:16s} gradient at the first layer / at the last: {gradient[0] / gradient[-1]:.1e}")
    ax_signal.set(xlabel="layer", ylabel="signal (root mean square)", title="forward: the signal")
    ax_gradient.set(xlabel="layer", ylabel="gradient norm of the weights", title="backward: the gradient")
    ax_alike.set(xlabel="layer", ylabel="cosine between tokens", title="forward: what it still tells apart")
    ax_gradient.legend()
    path = save_figure(
        fig, figure_path(__file__, "layer_norm", config.quick), title="What norms and residuals do for depth",
        caption="An untrained stack in four variants. Read the middle panel from right to left, as the gradient travels: in "
                "the plain stack it shrinks layer by layer, and of the signal (left) only the biases remain, so that all "
                "tokens are alike (right). A norm alone keeps both alive, but tokens still grow alike. With a residual "
                "connection the gradient reaches the first layer at full size and tokens stay different.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
