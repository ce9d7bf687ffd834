"""Lesson 3.6 - can a model read on for ever with a cache that does not grow?

Streams text of twenty times the trained length through the model of part_3/train.py, and measures the loss along the way
with (a) a full cache, (b) a window, (c) a window with four sinks, both with positions in the cache, (d) the window computed
anew for every token. Then it looks where the attention goes. What to see: (a) breaks down soon after the trained length;
(c) and (d) go on as if nothing had happened; how much (b) loses depends on how much attention the first tokens get.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, packed_weights, pick_device
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, figure_path, heatmap, plt, save_figure
from part_2.corpus import load_corpus
from part_2.dataset import split_tokens
from part_2.loss import token_losses
from part_3.attention_mask import attention_mask
from part_3.modern_gpt import load_model
from part_3.train import RUNS


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_3/train.py, trained without a window")
    factor: int = option(20, "length of the stream, in trained lengths")
    sinks: int = option(4, "sinks of variant (c); its window is as much shorter")
    n_streams: int = option(8, "streams side by side, from different places of the validation text")
    stride: int = option(8, "variant (d) looks at every so manieth token")
    device: str = option("cpu", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), factor=3, n_streams=2)

    def __post_init__(self):
        check_positive(self, "factor", "n_streams", "stride")
        if self.sinks < 1:
            raise InputError(f"--sinks must be at least 1, not {self.sinks}")


def with_window(model, window, sinks):
    """The same weights read through a sliding window: nothing is copied but the config."""
    other = copy.copy(model)
    other.config = dataclasses.replace(model.config, window=window, sinks=sinks)
    return other


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


@torch.inference_mode()
def attention_maps(model, tokens):
    """The attention weights of every layer in one plain pass: a list of (B, H, T, T)."""
    positions, maps, hooks = torch.arange(tokens.shape[1], device=tokens.device), [], []
    mask = attention_mask(positions, positions)
    for block in model.blocks:
        hooks.append(block.attention.register_forward_pre_hook(
            lambda module, inputs: maps.append(module.attention_weights(inputs[0], mask, model.rotation(positions)))))
    model(tokens)
    for hook in hooks:
        hook.remove()
    return maps


def main(config):
    device = pick_device(config.device)
    model, tokenizer, state = load_model(config.checkpoint, device)
    if model.config.window is not None or model.config.positions != "rope":
        raise InputError(f"{config.checkpoint} has a window or no rotary positions; train one: python3 part_3/train.py")
    T = model.config.block_size
    if config.sinks >= T:
        raise InputError(f"--sinks {config.sinks} must be below the trained length {T}")
    N = config.factor * T
    _, text = split_tokens(tokenizer.encode_to_tensor(load_corpus(state["config"]["data"])), T)
    if len(text) < config.n_streams + N:
        raise InputError(f"the validation text has {len(text)} tokens, too few for --factor {config.factor}")
    starts = torch.linspace(0, len(text) - N - 1, config.n_streams).long()
    tokens = torch.stack([text[start:start + N + 1] for start in starts]).long().to(device)

    losses = {"(a) full cache": stream_losses(model, tokens, "static", T, "(a)"),
              "(b) window, no sinks": stream_losses(with_window(model, T, 0), tokens, "streaming", 1, "(b)"),
              f"(c) window, {config.sinks} sinks": stream_losses(with_window(model, T - config.sinks, config.sinks), tokens,
                                                                "streaming", 1, "(c)"),
              "(d) computed anew": recomputed_losses(model, tokens, T, config.stride)}
    fig, (ax_loss, ax_map, ax_sink) = plt.subplots(1, 3, figsize=(13, 4.6), width_ratios=(4, 3, 2))
    for (name, loss), color, line in zip(losses.items(), (ORANGE, PURPLE, BLUE, GREEN), ("-", "-.", "-", ":")):
        parts = loss.mean(dim=0).tensor_split(2 * config.factor)  # half a trained length for one point
        ax_loss.plot([N * (i + 0.5) / len(parts) for i in range(len(parts))], [part.mean().item() for part in parts],
                     color=color, linestyle=line, label=name)
        late = loss[:, loss.shape[1] // config.factor:].mean(dim=1)
        print(f"{name:20s} loss after the trained length {late.mean():.3f} nats per byte "
              f"(streams from {late.min():.3f} to {late.max():.3f})")
    ax_loss.axvline(T, color=BLACK, linewidth=1)
    ax_loss.set(xlabel=f"position in the stream (trained up to {T})", ylabel="loss (nats per byte)",
                title="loss along the stream")
    ax_loss.legend()

    maps = attention_maps(model, tokens[:, :T])
    by_key = torch.stack([weights.mean(dim=(0, 1))[T // 2:].mean(dim=0) for weights in maps]).cpu()  # (L, T)
    image = heatmap(ax_map, by_key.clamp(min=1e-4).log10(), xlabel="key position", ylabel="layer",
                    yticks=range(1, len(maps) + 1))
    fig.colorbar(image, ax=ax_map, label="mean weight, log10")
    ax_map.set_title("where attention goes")
    first = torch.stack([weights[:, :, T // 2:, :config.sinks].sum(dim=-1).mean(dim=(0, 2)) for weights in maps]).cpu()  # (L, H)
    even = sum(config.sinks / (query + 1) for query in range(T // 2, T)) / (T - T // 2)
    for head in range(first.shape[1]):
        ax_sink.plot(range(1, len(maps) + 1), first[:, head], "o", color=BLUE)
    ax_sink.axhline(even, color=BLACK, linestyle=":", label="if spread evenly")
    ax_sink.set(xlabel="layer", ylabel=f"share of the first {config.sinks} tokens", title="attention parked on sinks",
                xticks=range(1, len(maps) + 1), ylim=(0, None))
    ax_sink.legend()
    print(f"attention on the first {config.sinks} tokens: {first.mean():.1%} (evenly spread: {even:.1%}), "
          f"most in one head: {first.max():.1%}")
    path = save_figure(
        fig, figure_path(__file__, "streaming", config.quick), title=f"Streaming {config.factor} times the trained length",
        caption=f"Left: mean of {config.n_streams} streams. A full cache runs into positions that were never trained; a window "
                "with positions in the cache reads on at the loss of a window that is computed anew for every token, at a "
                f"fraction of its cost. Middle and right: how much attention queries {T // 2} to {T} pay to each key, and each "
                f"head to the first {config.sinks}: where that is little, dropping them (b) costs little.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
