"""Lesson 3.4 - are the caches exactly right, and what does each cost along a long text?

First the proof: for every combination of cache, mask, number of key-value heads, batch and way of reading the prompt, the
largest difference between the logits with the cache and those of one plain pass over each prompt alone. Then the model of
part_3/train.py reads ten times its trained length with each cache: speed, memory and loss along the way. What to see: no
difference above rounding anywhere; memory and time of the rings stop growing; only positions in the cache keep the loss.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import itertools
import time
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import packed_weights, set_seed
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, figure_path, heatmap, plt, save_figure
from part_2.corpus import load_corpus
from part_2.dataset import split_tokens
from part_2.loss import token_losses
from part_3.demo_streaming import with_window
from part_3.generate import pad_left
from part_3.modern_gpt import ModernGPT, ModernGPTConfig, load_model
from part_3.train import RUNS

MASKS = {"full": dict(window=64), "window": dict(window=7), "window + sinks": dict(window=6, sinks=3)}
CHUNKS = {"in one": 40, "in chunks": 7, "token by token": 1}
LENGTHS = {"one prompt": [40], "ragged": [40, 31, 5, 1]}


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_3/train.py, trained without a window")
    factor: int = option(10, "length of the stream, in trained lengths")
    sinks: int = option(4, "sinks of the rings; their window is as much shorter than the trained length")
    seed: int = option(0, "seed of the random models of the proof")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), factor=2)

    def __post_init__(self):
        check_positive(self, "factor")
        if self.sinks < 0:
            raise InputError(f"--sinks must not be negative, not {self.sinks}")


@torch.inference_mode()
def largest_difference(model, prompts, cache, chunk):
    """Between the logits of each prompt read alone in one plain pass, and those read together with a cache in chunks."""
    tokens, positions = pad_left(prompts)
    T = tokens.shape[1]
    kept = None if cache == "none" else model.new_cache(cache, len(prompts), T)
    parts = []
    for start in range(0, T, chunk):
        seen = slice(0 if kept is None else start, start + chunk)  # without a cache everything so far is read again
        logits = model(tokens[:, seen], None if positions is None else positions[:, seen], kept)
        parts.append(logits[:, start - seen.start:])
    together = torch.cat(parts, dim=1)
    return max((together[row, T - len(prompt):] - model(prompt[None])[0]).abs().max().item()
               for row, prompt in enumerate(prompts))


def proof(config):
    """Differences of all combinations: rows (cache, way of reading), columns (mask, heads, batch)."""
    rows = list(itertools.product(("none", "static", "rolling"), CHUNKS))
    columns = list(itertools.product(MASKS, ("MHA", "GQA"), LENGTHS))
    differences = torch.empty(len(rows), len(columns))
    for j, (mask, heads, batch) in enumerate(columns):
        set_seed(config.seed)
        limits = {} if mask == "full" else MASKS[mask]
        model = ModernGPT(ModernGPTConfig(64, 64, 3, 4, 32, n_kv_head=2 if heads == "GQA" else 4, **limits)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # so that attention is far from even, and a wrong mask shows
        prompts = [torch.randint(64, (length,)) for length in LENGTHS[batch]]
        for i, (cache, reading) in enumerate(rows):
            other = with_window(model, **MASKS[mask], **({} if "sinks" in MASKS[mask] else {"sinks": 0}))
            differences[i, j] = largest_difference(other if cache == "rolling" else model, prompts, cache, CHUNKS[reading])
    return rows, columns, differences


@torch.inference_mode()
def read_along(model, tokens, cache):
    """Feed a stream token by token. tokens: (N+1,). Returns loss (N,), seconds (N,) and bytes held (N,)."""
    kept = model.new_cache(cache, 1, len(tokens))
    used = kept.n_bytes / kept.keys[0].shape[2]  # bytes of one place
    losses, seconds, held = [], [], []
    with packed_weights(model):
        for token, target in zip(tqdm(tokens[:-1], cache, disable=None), tokens[1:]):
            started = time.perf_counter()
            logits = model(token.view(1, 1), cache=kept)
            losses.append(token_losses(logits[0, 0], target))
            seconds.append(time.perf_counter() - started)
            held.append(used * kept.read.stop)
    return torch.stack(losses), seconds, held


def main(config):
    model, tokenizer, state = load_model(config.checkpoint)
    T = model.config.block_size
    if model.config.window is not None or config.sinks >= T:
        raise InputError(f"needs a model without a window and --sinks below its trained length {T}: python3 part_3/train.py")
    rows, columns, differences = proof(config)
    print(f"{differences.numel()} combinations, largest difference {differences.max():.1e}")
    fig, ax = plt.subplots(figsize=(11, 6))
    image = heatmap(ax, differences.clamp(min=1e-9).log10(), xlabel="mask, heads, batch", ylabel="cache, prompt read",
                    yticks=[f"{cache}, {reading}" for cache, reading in rows], vmin=-8, vmax=-3, cmap="cividis")
    ax.set_xticks(range(len(columns)), ["\n".join(column) for column in columns], fontsize=7)
    fig.colorbar(image, ax=ax, label="largest difference of a logit, log10")
    print(save_figure(
        fig, figure_path(__file__, "cache_lab", config.quick), title="Every cache gives the logits of the plain pass",
        caption=f"{differences.numel()} combinations; the largest difference is {differences.max():.0e}, the rounding of fp32 "
                "(logits are of the order of 1 to 10). A single wrong entry of a mask would show as a yellow field.",
        command=command_line(__file__, config)))

    _, text = split_tokens(tokenizer.encode_to_tensor(load_corpus(state["config"]["data"])), T)
    tokens = text[:config.factor * T + 1].long()
    window = with_window(model, T - config.sinks, config.sinks)
    fig, (ax_speed, ax_held, ax_loss) = plt.subplots(1, 3, figsize=(13, 4.4))
    size = T // 4  # tokens for one point
    lengths = [len(tokens) * i // 8 for i in range(1, 9)]
    with torch.inference_mode(), packed_weights(model):
        anew = []
        for n in lengths:
            started = time.perf_counter()
            model.head(model.hidden_states(tokens[None, :n])[:, -1])
            anew.append(time.perf_counter() - started)
        plain = token_losses(model(tokens[None, :-1]), tokens[None, 1:])[0]
    ax_speed.semilogy(lengths, [1 / s for s in anew], color=ORANGE, marker="o", label="none: all computed anew")
    ax_held.semilogy(lengths, [1] * len(lengths), alpha=0)  # nothing is held: a share of the axis, no line
    for cache, other, color, line in (("static", model, BLUE, "-"), ("rolling", window, PURPLE, "-."),
                                      ("streaming", window, GREEN, "--")):
        loss, seconds, held = read_along(other, tokens, cache)
        middles = range(size // 2, len(seconds), size)
        ax_speed.semilogy(middles, [1 / median(seconds[i - size // 2:i + size // 2]) for i in middles], color=color, linestyle=line,
                          label=cache)
        ax_held.semilogy(range(1, len(held) + 1), held, color=color, linestyle=line, label=cache)
        ax_loss.plot([i + T // 2 for i in range(0, len(loss), T)], loss.view(-1, T).mean(dim=1), color=color, linestyle=line,
                     marker="o", markersize=4)
        print(f"{cache:9s} {1 / median(seconds[-T:]):6.0f} tokens/s at the end, {held[-1] / 1024:7.0f} KiB held, loss beyond "
              f"the trained length {loss[T:].mean():.3f}")
        if cache == "static":
            print(f"          largest difference to the loss of one plain pass: {(loss - plain).abs().max():.1e}")
    for ax in (ax_speed, ax_held, ax_loss):
        ax.axvline(T, color=BLACK, linewidth=1)
        ax.set_xlabel(f"position in the stream (trained up to {T})")
    ax_speed.set(ylabel="tokens per second", title="speed")
    ax_held.set(ylabel="bytes", title="keys and values held")
    ax_loss.set(ylabel="loss (nats per byte)", title="loss")
    ax_speed.legend(fontsize=9)
    print(save_figure(
        fig, figure_path(__file__, "cache_lab_stream", config.quick), title=f"A stream {config.factor} times the trained length",
        caption="One stream, token by token. Without a cache the time of a token grows with the text, with a static cache its "
                "memory does. The rings hold the same however long the text is. Loss: a full cache, and sinks that keep "
                "their absolute position, meet distances that were never trained; positions in the cache do not.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
