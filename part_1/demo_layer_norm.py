"""Lesson 1.6 - why do deep stacks need residual connections and norms?

A stack of 24 feed-forward layers, untrained, in the four combinations of residual and LayerNorm: the size of the signal
after each layer, the norm of the gradient at each layer's weights on the way back, and how alike the vectors of different
tokens have become (five seeds); once with torch's default initialisation, whose weights are small, and once with that of
He et al. (2015), whose weights are 2.4 times as large. What to see: with small weights the plain stack loses its input
within a few layers, only the biases are left, and the gradient shrinks by a fixed factor a layer; with large ones its
signal grows from layer to layer, even more so with a residual. With a norm neither vanishes nor explodes, whatever the
weights' scale. Only the two together also keep the tokens' vectors apart with either.
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


def he_initialise(layer):
    """Weights of variance 2 / fan-in and zero biases, where torch's default has variance 1 / (3 fan-in) for both."""
    if isinstance(layer, nn.Linear):
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)


def through_the_stack(residual, norm, he, seed, config):
    """Three (L,) tensors: the signal's root mean square after each layer, the gradient's norm at each layer's weights, and
    the mean cosine between different tokens' vectors after each layer."""
    set_seed(seed)
    layers = nn.ModuleList(FeedForward(config.d_model) for _ in range(config.n_layer))
    if he:
        layers.apply(he_initialise)
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
    fig, axes = plt.subplots(2, 3, figsize=(11, 6.5), sharex=True)
    depth = range(1, config.n_layer + 1)
    for he, (ax_signal, ax_gradient, ax_alike) in enumerate(axes):
        init = ("torch's default", "He et al.")[he]
        print(f"initialisation: {init}")
        for (residual, norm), (name, color, line) in STYLES.items():
            runs = [through_the_stack(residual, norm, he, config.seed + s, config) for s in range(config.n_seed)]
            signals, gradients, alike = (torch.stack(part) for part in zip(*runs))
            signal, gradient = signals.log().mean(0).exp(), gradients.log().mean(0).exp()
            style = dict(color=color, linestyle=line, zorder=2 if line == "-" else 3)  # broken lines over solid ones
            ax_signal.semilogy(depth, signal, label=name, **style)
            ax_gradient.semilogy(depth, gradient, **style)
            ax_alike.plot(depth, alike.mean(0), **style)
            print(f"  {name:16s} signal at the last layer {signal[-1]:.1e}, gradient at the first {gradient[0]:.1e}, at the "
                  f"last {gradient[-1]:.1e}")
        ax_signal.set(ylabel=f"initialisation: {init}\nsignal (root mean square)")
        ax_gradient.set(ylabel="gradient norm of the weights")
        ax_alike.set(ylabel="cosine between tokens", ylim=(-0.05, 1.05))
    for ax, title in zip(axes[0], ("forward: the signal", "backward: the gradient", "forward: how alike tokens are")):
        ax.set_title(title)
    for ax in axes[-1]:
        ax.set_xlabel("layer")
    axes[1, 0].legend()
    path = save_figure(
        fig, figure_path(__file__, "layer_norm", config.quick), title="What norms and residuals do for depth",
        caption="An untrained stack in four variants; read the gradient from right to left, as it travels. Top: with "
                "torch's small default weights, the plain stack's gradient shrinks layer by layer, of its signal only the "
                "biases remain, and all tokens become alike. Bottom: with the larger weights of He et al. (2015) the signal "
                "grows from layer to layer wherever there is no norm. With a norm neither happens; only residual and norm "
                "together also keep the tokens apart in both rows.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
