"""Lesson 3.4 - what makes decoding fast? Each optimisation switched off on its own.

Takes the model and the measurement of demo_kv_cache.py, and undoes one thing at a time: weights packed for the processor,
one matrix product for query, key and value (and one for gate and up), preallocated places instead of concatenation, groups
of queries instead of repeated keys, no mask where nothing is hidden, inference mode. All variants take turns, round by
round, and the fastest round of each counts. What to see: packed weights bring most; for one prompt small operations count
too, and for sixteen, once the texts are long (--n_new 512), the bytes moved.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import contextlib
import copy
from dataclasses import dataclass
from typing import ClassVar
from unittest import mock

import torch
from torch import nn
from tqdm import tqdm

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import fused_attention, pick_device, set_seed
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_3 import attention, demo_kv_cache, generate
from part_3.kv_cache import StaticCache
from part_3.modern_gpt import CACHES, ModernGPT


@dataclass(frozen=True)
class Config(demo_kv_cache.Config):
    n_new: int = option(64, "tokens to write")
    n_rounds: int = option(5, "rounds in which every variant has its turn")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = demo_kv_cache.Config.QUICK | dict(n_rounds=1)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "n_rounds")


class SeparateProducts(nn.Module):
    """A linear layer cut into several, as where query, key and value have a matrix each."""

    def __init__(self, linear, widths):
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(linear.in_features, width, bias=False) for width in widths)
        for part, weight in zip(self.parts, linear.weight.split(widths)):
            part.weight = nn.Parameter(weight.detach())

    def forward(self, x):
        return torch.cat([part(x) for part in self.parts], dim=-1)


def cut_products(model, config):
    """The same model with separate matrices for query, key and value, and for gate and up."""
    model = copy.deepcopy(model)
    D = config.d_model // config.n_head
    for block in model.blocks:
        block.attention.qkv = SeparateProducts(block.attention.qkv, [config.d_model, *[config.n_kv_head * D] * 2])
        block.feed_forward.expand = SeparateProducts(block.feed_forward.expand, [model.config.d_hidden] * 2)
    return model


class ConcatenatingCache(StaticCache):
    """What the older tutorials do: a new, longer tensor for every token."""

    def update(self, layer, key, value):
        if self.read.stop > 1 + key.shape[2]:
            key = torch.cat((self.keys[layer], key), dim=2)
            value = torch.cat((self.values[layer], value), dim=2)
        self.keys[layer], self.values[layer] = key, value
        return key, value


def repeated_attention(query, key, value, mask=None, causal=False, dropout=0.0):
    """Grouped attention by repeating keys and values for every query head."""
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    return fused_attention(query, key, value, attn_mask=mask, is_causal=causal and mask is None)


def begin_with_mask(cache, n_tokens, positions=None, plain=StaticCache.begin):
    """`StaticCache.begin`, but always asking for a mask."""
    positions, key_positions = plain(cache, n_tokens, positions)
    return positions, torch.arange(cache.length, device=cache.device) if key_positions is None else key_positions


UNDO = {
    "all on": contextlib.nullcontext,
    "weights not packed": lambda: mock.patch.object(generate, "packed_weights", contextlib.nullcontext),
    "separate products": contextlib.nullcontext,  # another model
    "cache concatenated": lambda: mock.patch.dict(CACHES, static=ConcatenatingCache),
    "keys repeated": lambda: mock.patch.object(attention, "grouped_attention", repeated_attention),
    "mask at every step": lambda: mock.patch.object(StaticCache, "begin", begin_with_mask),
    "no inference mode": lambda: mock.patch.object(torch, "inference_mode", torch.no_grad),
}


def main(config):
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    set_seed(config.seed)
    model = ModernGPT(config.model_config()).to(device).eval()
    models = dict.fromkeys(UNDO, model) | {"separate products": cut_products(model, config)}
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.2), sharey=True)
    bar = tqdm(total=2 * config.n_rounds * len(UNDO), unit="run", disable=None)
    for ax, B in zip(axes, (1, config.batch_size)):
        prompts = torch.randint(config.vocab_size, (B, config.n_prompt), device=device)
        speeds = {name: 0.0 for name in UNDO}  # the fastest of all rounds: whatever else runs can only make one slower
        for _ in range(config.n_rounds):
            for name, undo in UNDO.items():
                with undo():
                    times = demo_kv_cache.decode_times(models[name], prompts, config, "static")
                speeds[name] = max(speeds[name], B * len(times) / sum(times))
                bar.update()
        for row, (name, speed) in enumerate(speeds.items()):
            share = speed / speeds["all on"]
            ax.barh(row, share, color=BLUE if name == "all on" else ORANGE)
            ax.text(share + 0.02, row, f"{share:.2f}", va="center")
            tqdm.write(f"batch {B:2d}   {name:20s} {speed:6.0f} tokens/s   {share:.2f}")
        ax.set(xlabel="tokens per second, relative to all on",
               title=f"batch of {B}: {speeds['all on']:.0f} tokens/s",
               xlim=(0, 0.2 + max(speeds.values()) / speeds["all on"]))  # a noisy run may have one above 1
        ax.set_yticks(range(len(UNDO)), ["all on", *list(UNDO)[1:]])
    bar.close()
    axes[0].invert_yaxis()
    path = save_figure(
        fig, figure_path(__file__, "decoding_speed", config.quick), title="What makes decoding fast",
        caption=f"Each bar undoes one thing: the shorter it is, the more that thing brings here. Fastest of "
                f"{config.n_rounds} rounds in turn, {config.threads} thread{'s' * (config.threads > 1)}, "
                f"{config.n_new} new tokens.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
