"""Lesson 1.7 - what can a token in a Transformer block know?

Two probes of an untrained block. One: change a token, and see which outputs change. Two: shuffle the tokens
before the last one, and see whether the last output changes. What to see: with the causal mask nothing above the diagonal
changes, exactly. And without positions the shuffled past changes the last output by no more than rounding: one block sees
the past as a set.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, ORANGE, figure_path, heatmap, plt, save_figure
from part_1.positional_encoding import sinusoidal_table
from part_1.transformer_block import TransformerBlock


@dataclass(frozen=True)
class Config:
    n_tokens: int = option(12, "tokens T")
    d_model: int = option(64, "width C, even")
    n_head: int = option(4, "attention heads")
    seed: int = option(0, "seed of weights and tokens")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_tokens=6, d_model=16)

    def __post_init__(self):
        check_positive(self, "d_model", "n_head")
        if self.n_tokens < 3:
            raise ValueError(f"--n_tokens must be at least 3, not {self.n_tokens}")
        TransformerBlock(self.d_model, self.n_head)  # refuses a width that the heads do not divide
        sinusoidal_table(1, self.d_model)  # refuses an odd width


@torch.no_grad()
def influence(block, x, causal):
    """How much each output moves when each input token is replaced: (T output, T input). x: (T, C)."""
    before = block(x[None], causal)[0]
    columns = []
    for j in range(len(x)):
        changed = x.clone()
        changed[j] = torch.randn(x.shape[1])
        columns.append((block(changed[None], causal)[0] - before).norm(dim=1))
    return torch.stack(columns, dim=1)


@torch.no_grad()
def shuffle_effect(block, x, positions):
    """Relative change of the last output when the tokens before it are shuffled. x: (T, C); positions: (T, C)."""
    order = torch.cat((torch.arange(len(x) - 1).flip(0), torch.tensor([len(x) - 1])))
    before, after = (block((tokens + positions)[None])[0, -1] for tokens in (x, x[order]))
    return ((after - before).norm() / before.norm()).item()


def main(config):
    set_seed(config.seed)
    block = TransformerBlock(config.d_model, config.n_head)
    x = torch.randn(config.n_tokens, config.d_model)
    fig, (ax_causal, ax_both, ax_shuffle) = plt.subplots(1, 3, figsize=(12, 4.3))
    for ax, causal, title in ((ax_causal, True, "causal"), (ax_both, False, "not causal")):
        moved = influence(block, x, causal)
        image = heatmap(ax, moved.clamp(min=1e-4), xlabel="token that was changed", ylabel="output", norm="log",
                        aspect="equal", vmin=1e-4, vmax=10, xticks=range(config.n_tokens), yticks=range(config.n_tokens))
        ax.set_title(title)
        above = moved.triu(1).max()
        print(f"{title:12s} largest change of an output before the changed token: {above:.1e}")
    fig.colorbar(image, ax=ax_both, label="change of the output", shrink=0.8)

    effects = {"no positions": shuffle_effect(block, x, torch.zeros_like(x)),
               "sinusoidal\npositions": shuffle_effect(block, x, sinusoidal_table(config.n_tokens, config.d_model))}
    ax_shuffle.bar(list(effects), list(effects.values()), color=(ORANGE, BLUE))
    ax_shuffle.set(yscale="log", ylim=(1e-9, 10), ylabel="relative change of the last output", title="past tokens shuffled")
    for i, (name, value) in enumerate(effects.items()):
        ax_shuffle.text(i, max(value, 1e-9) * 1.5, f"{value:.0e}", ha="center")
        print(f"{name.replace(chr(10), ' '):22s} change of the last output when the past is shuffled: {value:.1e}")
    path = save_figure(
        fig, figure_path(__file__, "transformer_block", config.quick), title="What a Transformer block can know",
        caption="Left: with the causal mask, changing a token changes its own output and later ones, never an earlier one "
                "(dark). Middle: without the mask everything sees everything. Right: without positions the order of the "
                "past makes no difference beyond rounding; with them it does.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
