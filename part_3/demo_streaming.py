"""Lesson 3.6 - can a model read on for ever with a cache that does not grow?

Streams text of twelve times the trained length through the model of part_3/train.py, and measures the loss along the way
with (a) a full cache, (b) a window, (c) a window with four sinks, both with positions in the cache, (d) the window
recomputed for every token. What to see: (a) breaks down soon after the trained length; (c) and (d) go on as if nothing had
happened. How much (b) loses depends on how much attention the first tokens get: demo_attention_sinks.py looks at that.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.onednn import packed_weights
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, figure_path, plt, save_figure
from part_2.corpus import load_corpus
from part_2.dataset import split_tokens
from part_2.loss import token_losses
from part_3.modern_gpt import load_model, reread
from part_3.train import RUNS


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_3/train.py, trained without a window")
    factor: int = option(12, "length of the stream, in trained lengths")
    sinks: int = option(4, "sinks of variant (c); its window is shorter by that many")
    n_streams: int = option(8, "streams side by side, from different places of the validation text")
    stride: int = option(4, "the losses of every stride-th token are compared: (d) is slow")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), factor=3, n_streams=2)

    def __post_init__(self):
        check_positive(self, "factor", "n_streams", "stride")
        if self.sinks < 1:
            raise InputError(f"--sinks must be at least 1, not {self.sinks}")


def load_streams(config):
    """The model of config.checkpoint and texts (B, N+1) from evenly spread places of its validation text."""
    model, tokenizer, state = load_model(config.checkpoint)
    if model.config.window is not None or model.config.positions != "rope":
        raise InputError(f"{config.checkpoint} has a window or no rotary positions; train one: python3 part_3/train.py")
    T = model.config.block_size
    if config.sinks >= T:
        raise InputError(f"--sinks {config.sinks} must be below the trained length {T}")
    N = config.factor * T
    _, text = split_tokens(tokenizer.encode_to_tensor(load_corpus(state["config"]["data"])), T)
    if len(text) < N + config.n_streams:
        raise InputError(f"the validation text has {len(text)} tokens, too few for --factor {config.factor}")
    starts = torch.linspace(0, len(text) - N - 1, config.n_streams).long()
    return model, torch.stack([text[start:start + N + 1] for start in starts]).long()


@torch.inference_mode()
def stream_losses(model, tokens, cache, chunk, name):
    """The loss of every token but the first, fed to the model `chunk` at a time. tokens: (B, N+1). Returns (B, N)."""
    kept, losses = model.new_cache(cache, len(tokens), tokens.shape[1]), []
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with packed_weights(model):
        for part, target in zip(tqdm(inputs.split(chunk, dim=1), name, disable=None), targets.split(chunk, dim=1)):
            losses.append(token_losses(model(part, cache=kept), target))
    return torch.cat(losses, dim=1)


@torch.inference_mode()
def recomputed_losses(model, tokens, length, stride):
    """The loss of every stride-th token, read with nothing but the `length` tokens before it. Returns (B, N // stride)."""
    ends = range(stride, tokens.shape[1], stride)
    losses = []
    with packed_weights(model):
        for end in tqdm(ends, "(d)", disable=None):
            logits = model.head(model.hidden_states(tokens[:, max(0, end - length):end])[:, -1])
            losses.append(token_losses(logits, tokens[:, end]))
    return torch.stack(losses, dim=1)


def main(config):
    model, tokens = load_streams(config)
    T, N = model.config.block_size, tokens.shape[1] - 1
    no_sinks, with_sinks = reread(model, window=T), reread(model, window=T - config.sinks, sinks=config.sinks)
    losses = {"(a) full cache": stream_losses(model, tokens, "static", T, "(a)"),
              "(b) window, no sinks": stream_losses(no_sinks, tokens, "streaming", 1, "(b)"),
              f"(c) window, {config.sinks} sinks": stream_losses(with_sinks, tokens, "streaming", 1, "(c)")}
    losses = {name: loss[:, config.stride - 1::config.stride] for name, loss in losses.items()}
    losses["(d) window recomputed"] = recomputed_losses(model, tokens, T, config.stride)
    fig, (ax, ax_gap) = plt.subplots(1, 2, figsize=(12, 4.5))
    middles = [N * (i + 0.5) / config.factor for i in range(config.factor)]  # a trained length for one point
    anew = losses["(d) window recomputed"]
    for (name, loss), color, line in zip(losses.items(), (ORANGE, PURPLE, BLUE, GREEN), ("-", "-.", "--", ":")):
        ax.plot(middles, [part.mean().item() for part in loss.mean(dim=0).tensor_split(config.factor)], color=color,
                linestyle=line, label=name)
        if color in (PURPLE, BLUE):
            gap = (loss - anew).mean(dim=0).tensor_split(config.factor)
            ax_gap.plot(middles, [part.mean().item() for part in gap], color=color, linestyle=line, label=name)
        late = loss[:, T // config.stride:].mean(dim=1)
        print(f"{name:22s} loss after the trained length {late.mean():.3f} nats per byte "
              f"(streams from {late.min():.3f} to {late.max():.3f})")
    ax.axvline(T, color=BLACK, linewidth=1)
    ax.set(xlabel=f"position in the stream (trained up to {T})", ylabel="loss (nats per byte)", title="loss")
    ax_gap.axhline(0, color=GREEN, linestyle=":", label="(d) window recomputed")
    ax_gap.set(xlabel="position in the stream", ylabel="nats per byte above (d)",
               title="against a window that is recomputed")
    for axis in (ax, ax_gap):
        axis.legend()
    path = save_figure(
        fig, figure_path(__file__, "streaming", config.quick), title=f"Streaming {config.factor} times the trained length",
        caption=f"Mean of {config.n_streams} streams. Left: a full cache runs into positions that were never trained; a "
                "window with positions in the cache reads on. Right: what it loses against a window that is recomputed for "
                "every token; mind the scale.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
