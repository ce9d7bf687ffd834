"""Lesson 3.6 - what does each cache cost along a text eight times as long as the model was trained on?

The model of part_3/train.py reads several streams of validation text side by side, token by token, with a static cache, with
a ring and absolute positions, and with a ring and positions in the cache; and, at some lengths, without any cache. What to
see: time and memory of the rings stop growing; only positions in the cache keep the loss.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import time
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.onednn import packed_weights
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, figure_path, plt, save_figure
from part_2.loss import token_losses
from part_3.demo_kv_cache import times_without_cache
from part_3.demo_streaming import load_streams
from part_3.modern_gpt import reread
from part_3.train import RUNS

STYLES = {"static": (BLUE, "-", "static"), "rolling": (PURPLE, "-.", "ring, absolute positions"),
          "streaming": (GREEN, "--", "ring, positions in the cache")}


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_3/train.py, trained without a window")
    factor: int = option(8, "length of the streams, in trained lengths")
    sinks: int = option(4, "sinks of the rings; their window is shorter by that many than the trained length")
    n_streams: int = option(8, "streams side by side")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), factor=2, n_streams=2)

    def __post_init__(self):
        check_positive(self, "factor", "n_streams")
        if self.sinks < 0:
            raise InputError(f"--sinks must not be negative, not {self.sinks}")


@torch.inference_mode()
def read_along(model, tokens, cache):
    """Feed streams token by token. tokens: (B, N+1). Returns loss (N,), seconds (N,) and bytes of keys and values in use."""
    kept = model.new_cache(cache, len(tokens), tokens.shape[1])
    place = kept.n_bytes / kept.keys[0].shape[2]  # bytes of one place in all layers
    losses, seconds, held = [], [], []
    with packed_weights(model):
        for step in tqdm(range(tokens.shape[1] - 1), cache, disable=None):
            started = time.perf_counter()
            logits = model(tokens[:, step:step + 1], cache=kept)
            losses.append(token_losses(logits[:, 0], tokens[:, step + 1]).mean())
            seconds.append(time.perf_counter() - started)
            held.append(place * kept.read.stop)
    return torch.stack(losses), seconds, held


def main(config):
    model, tokens = load_streams(config)
    T, B, N = model.config.block_size, config.n_streams, tokens.shape[1] - 1
    ring = reread(model, window=T - config.sinks, sinks=config.sinks)
    fig, (ax_speed, ax_held, ax_loss) = plt.subplots(1, 3, figsize=(13, 4.4))
    lengths = [N * i // 4 for i in range(1, 5)]
    anew = [B / seconds for seconds in times_without_cache(model, tokens, lengths)]
    ax_speed.semilogy(lengths, anew, color=ORANGE, marker="o", label="no cache")
    for cache, (color, line, name) in STYLES.items():
        loss, seconds, held = read_along(model if cache == "static" else ring, tokens, cache)
        size = T // 4  # tokens for one point
        points = [B / median(seconds[i:i + size]) for i in range(0, N, size)]
        ax_speed.semilogy([i + size / 2 for i in range(0, N, size)], points, color=color, linestyle=line, label=name)
        ax_held.plot(range(1, N + 1), [count / 2**20 for count in held], color=color, linestyle=line)
        if cache == "static":
            ax_held.axhline(held[-1] / 2**20, color=color, linewidth=1)
        ax_loss.plot([i + T / 2 for i in range(0, N, T)], loss.view(-1, T).mean(dim=1), color=color, linestyle=line,
                     marker=".")
        print(f"{name:29s} {B / median(seconds[-T:]):6.0f} tokens/s at the end, {held[-1] / 2**20:5.1f} MiB in use, loss "
              f"beyond the trained length {loss[T:].mean():.3f} nats per byte")
    for ax in (ax_speed, ax_held, ax_loss):
        ax.axvline(T, color=BLACK, linewidth=1)
        ax.set_xlabel(f"position (trained up to {T})")
    ax_speed.set(ylabel="tokens per second", title=f"speed, {B} streams")
    ax_held.set(ylabel="MiB", title="keys and values in use", ylim=(0, None))
    ax_loss.set(ylabel="loss (nats per byte)", title="loss")
    ax_speed.legend(fontsize=9)
    path = save_figure(
        fig, figure_path(__file__, "rolling_buffer", config.quick),
        title=f"Reading {config.factor} times the trained length",
        caption="Without a cache the time of a token grows with the text; with a static cache its memory in use does "
                "(thin line: what is allocated from the beginning). The rings stay as they are. Loss: a full cache (or "
                "none, the loss is the same) meets distances that were never trained, and so do sinks at their absolute "
                "position; positions in the cache do not.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
