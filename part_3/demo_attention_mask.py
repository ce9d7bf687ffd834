"""Lesson 3.5 - what does a token see under a sliding window, and what reaches it through several layers?

Draws the mask for full attention, a window, and a window with sinks; then how far a change travels back: the gradient of
the last token's output with respect to every input token, in models of one to four layers with a window. What to see: one
layer sees exactly the window; each further layer reaches window - 1 tokens further, and sinks reach back at once.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import figure_path, heatmap, plt, save_figure
from part_3.attention_mask import attention_mask
from part_3.modern_gpt import ModernGPT, ModernGPTConfig


@dataclass(frozen=True)
class Config:
    n_tokens: int = option(24, "length of the sequence T")
    window: int = option(6, "tokens that a query sees, itself included")
    sinks: int = option(2, "first tokens that stay visible")
    n_layer: int = option(4, "layers of the deepest model")
    seed: int = option(0, "seed of the weights")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_tokens=10, window=3, n_layer=2)

    def __post_init__(self):
        check_positive(self, "n_tokens", "window", "n_layer")
        if not 0 <= self.sinks <= self.n_tokens:
            raise InputError(f"--sinks must be from 0 to --n_tokens {self.n_tokens}, not {self.sinks}")


def reach(n_layer, config, sinks):
    """How strongly each input token moves the last token's output, relative to the strongest: (T,), 0 where not at all."""
    set_seed(config.seed)
    model = ModernGPT(ModernGPTConfig(256, config.n_tokens, n_layer, 2, 32, window=config.window, sinks=sinks))
    vectors = []
    model.token_embedding.register_forward_hook(lambda module, inputs, output: vectors.append(output))
    for block in model.blocks:
        torch.nn.init.normal_(block.attention.project.weight, std=0.3)  # the usual small start would hide what is far
    out = model.hidden_states(torch.randint(256, (1, config.n_tokens)))
    [gradient] = torch.autograd.grad(out[0, -1].sum(), vectors)
    size = gradient[0].norm(dim=-1)
    return size / size.max()


def main(config):
    T, positions = config.n_tokens, torch.arange(config.n_tokens)
    kinds = {"full": {}, f"window {config.window}": dict(window=config.window),
             f"window {config.window}, sinks {config.sinks}": dict(window=config.window, sinks=config.sinks)}
    fig, axes = plt.subplots(2, 3, figsize=(12, 6.6), height_ratios=(3, 2))
    for ax, (name, limits) in zip(axes[0], kinds.items()):
        mask = attention_mask(positions, positions, **limits)
        heatmap(ax, mask.float(), xlabel="key position", ylabel="query position", aspect="equal", cmap="Blues", vmax=1.3)
        ax.set_title(f"{name}\n{int(mask.sum())} of {T * T} pairs")
    axes[1, 0].axis("off")
    axes[1, 0].text(0, 0.5, "What reaches the last token\nthrough 1 to "
                    f"{config.n_layer} layers.\nWhite: nothing at all.", va="center")
    for ax, sinks in zip(axes[1, 1:], (0, config.sinks)):
        rows = torch.stack([reach(n, config, sinks) for n in range(1, config.n_layer + 1)])
        heatmap(ax, rows.masked_fill(rows == 0, float("nan")).log10(), xlabel="input position", ylabel="layers",
                yticks=range(1, config.n_layer + 1), vmin=-4, vmax=0)
        first = [int(row.nonzero()[0]) for row in rows]
        print(f"sinks {sinks}: the first token that reaches the last ({T - 1}), with 1 to {config.n_layer} layers: {first}")
    fig.colorbar(axes[1, 2].images[0], ax=axes[1, 1:], label="gradient, log10 of\nthe share of the largest")
    path = save_figure(
        fig, figure_path(__file__, "attention_mask", config.quick), title="Who may look at whom",
        caption="Above: blue pairs may look. A window cuts a band out of the causal triangle; sinks add the first columns. "
                f"Below: through L layers a token is reached from L * (window - 1) = L * {config.window - 1} tokens back, "
                "without sinks exactly so; sinks are reached at once.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
