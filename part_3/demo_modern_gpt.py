"""Lesson 3.4 - from Part 2's GPT to ModernGPT, one piece at a time: what stays the same, and what does each piece bring?

The identity ladder: with everything switched back ModernGPT gives the GPT's logits with the same weights; as many key-value
heads as heads are multi-head attention; a window as long as the text is no window; a ring that has not wrapped is a static
cache. Then the way up: the GPT, and one piece more at each rung, trained on the same batches from three seeds. What to see:
differences at the size of fp32 rounding; and which rungs lie further apart than the seeds.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import dataclasses
from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLACK, BLUE, ORANGE, figure_path, plt, save_figure
from part_1.multi_head import MultiHeadAttention
from part_2.gpt import GPT, GPTConfig
from part_3.attention import Attention
from part_3.modern_gpt import ModernGPT
from part_3.side_by_side import ComparisonConfig, compare, describe

OFF = dict(norm="layernorm", positions="learned", mlp="gelu", bias=True)
RUNGS = {"Part 2's GPT": OFF, "+ RMSNorm, no biases": OFF | dict(norm="rmsnorm", bias=False)}
RUNGS["+ rotary positions"] = RUNGS["+ RMSNorm, no biases"] | dict(positions="rope")
RUNGS["+ SwiGLU"] = RUNGS["+ rotary positions"] | dict(mlp="swiglu")
RUNGS["+ half the KV heads"] = RUNGS["+ SwiGLU"] | dict(n_kv_head=2)


@dataclass(frozen=True)
class Config(ComparisonConfig):
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2)


@torch.no_grad()
def identities(config):
    """Largest difference of each pair that should be equal, and of one that should not: a dict."""
    set_seed(config.seed)
    T = config.block_size
    tokens = torch.randint(256, (4, T))
    old = GPT(GPTConfig(256, T, config.n_layer, config.n_head, config.d_model)).eval()
    new = ModernGPT(config.model_config(**OFF)).eval()
    new.load_state_dict(old.state_dict())
    x = torch.randn(4, T, config.d_model)
    grouped = Attention(config.d_model, config.n_head, config.n_head, bias=True)
    multi_head = MultiHeadAttention(config.d_model, config.n_head)
    multi_head.load_state_dict(grouped.state_dict())
    full = ModernGPT(config.model_config()).eval()
    windowed = ModernGPT(dataclasses.replace(full.config, window=T)).eval()
    narrow = ModernGPT(dataclasses.replace(full.config, window=T // 2)).eval()
    for other in (windowed, narrow):
        other.load_state_dict(full.state_dict())
    ring, static = (torch.cat([windowed(token, cache=cache) for token in tokens.split(1, dim=1)], dim=1)
                    for cache in (windowed.new_cache("rolling", 4), windowed.new_cache("static", 4, T)))
    pairs = {"all pieces off / Part 2's GPT": (new(tokens), old(tokens)),
             "H_kv = H / multi-head attention": (grouped(x, causal=True), multi_head(x, causal=True)),
             "window = T / full attention": (windowed(tokens), full(tokens)),
             "ring not yet full / static cache": (ring, static),
             "to compare: window = T/2 / full": (narrow(tokens), full(tokens))}
    return {name: (a - b).abs().max().item() for name, (a, b) in pairs.items()}


def main(config):
    differences = identities(config)
    results = compare(config, RUNGS, n_evals=1)  # only the last one is drawn
    fig, (ax_same, ax_loss) = plt.subplots(1, 2, figsize=(12, 4.6))
    names = list(differences)
    ax_same.barh(names, list(differences.values()), color=[ORANGE if "compare" in name else BLUE for name in names])
    ax_same.set(xscale="log", xlim=(1e-9, 10), xlabel="largest difference of an output", title="two that should be one")
    for row, value in enumerate(differences.values()):
        if value == 0:
            ax_same.text(2e-7, row, "0: equal to the last bit", va="center")
    ax_same.axvline(torch.finfo(torch.float32).eps, color=BLACK, linestyle=":", label="fp32 rounding of 1")
    ax_same.invert_yaxis()
    ax_same.legend(loc="upper right")
    for name, value in differences.items():
        print(f"{name:34s} {value:.1e}")
    for row, (name, runs) in enumerate(results.items()):
        final = [losses[-1] for losses in runs.val_loss]
        ax_loss.plot(final, [row] * len(final), "o", color=BLUE)
        ax_loss.plot(mean(final), row, "|", color=ORANGE, markersize=22, markeredgewidth=3)
        print(describe(name, runs))
    ax_loss.set(xlabel="final validation loss (nats per byte)", title="one piece more at a time")
    ax_loss.set_yticks(range(len(results)), results)
    ax_loss.invert_yaxis()
    path = save_figure(
        fig, figure_path(__file__, "modern_gpt", config.quick), title="From Part 2's GPT to ModernGPT",
        caption="Left: what should be equal is, to rounding; the last bar is a difference that should be there. Right: "
                f"each row has one piece more than the one above; {config.n_seed} seeds (dots) on the same batches and "
                "their mean (bar).",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
