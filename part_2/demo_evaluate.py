"""Lesson 2.6 - how good is the model, in a unit that anything can be measured in?

Evaluates a trained checkpoint over its whole validation split and compares its bits per byte with models that only count
(how often a byte follows the one or two before it), with the compressor xz, and with 8, the size of a byte. Beside it the
loss by position in the window. What to see: the model is well ahead of counting, and it foresees more once it has read a
few bytes of its window. Only xz with the whole training text at hand may be ahead of it: it copies long passages word
for word, where the model must say everything from under a million weights.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import hashlib
import lzma
from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_2.checkpoint import load_model
from part_2.corpus import load_corpus
from part_2.dataset import split_tokens
from part_2.evaluate import figures_of_merit, split_losses
from part_2.train import RUNS


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "last.pt"), "a checkpoint of part_2/train.py")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "last.pt"))


def counting_model(train, val, order):
    """Bits per byte on `val` of a model that counts in `train` how often each byte follows the `order` bytes before it.

    Every count starts at 0.01, so that nothing is impossible. train, val: (N,) uint8.
    """
    def contexts(tokens):
        codes = torch.zeros(len(tokens) - order, dtype=torch.int64)
        for back in range(order, 0, -1):
            codes = codes * 256 + tokens[order - back:len(tokens) - back]
        return codes, tokens[order:].long()

    code, following = contexts(train)
    counts = torch.bincount(code * 256 + following, minlength=256 ** (order + 1)).view(-1, 256).float() + 0.01
    code, following = contexts(val)
    return -(counts[code, following] / counts[code].sum(1)).log2().mean().item()


def xz_bits_per_byte(train, val):
    """What xz needs for `val` with `train` at hand: the growth of the compressed file. train, val: (N,) uint8."""
    train, val = train.numpy().tobytes(), val.numpy().tobytes()
    return 8 * (len(lzma.compress(train + val, preset=9)) - len(lzma.compress(train, preset=9))) / len(val)


def by_position(losses, block_size):
    """The loss by how much of its window the model has read: positions 1, 2, 3-4, 5-8, 9-16, ... together.

    losses: (N,) of windows end to end. Returns the last position of each group, its mean loss and its standard error.
    """
    windows = losses[:len(losses) // block_size * block_size].view(-1, block_size)  # (windows, T)
    ends = [2**i for i in range(block_size.bit_length())]
    groups = [windows[:, end // 2:end].mean(1) for end in ends]  # each (windows,)
    errors = [group.std(correction=0).item() / len(group) ** 0.5 for group in groups]
    return ends, [group.mean().item() for group in groups], errors


def main(config):
    model, tokenizer, state = load_model(config.checkpoint, pick_device(config.device))
    text = load_corpus(state["config"]["data"])
    if hashlib.sha256(text.encode("utf-8")).hexdigest() != state["data_hash"]:
        raise InputError(f"{config.checkpoint} was trained on another text than {state['config']['data']} is now")
    tokens = tokenizer.encode_to_tensor(text)
    train, val = split_tokens(tokens, model.config.block_size)
    losses = split_losses(model, val)
    merit = figures_of_merit(losses, len(val) - 1)
    print(f"step {state['step']}, {len(losses):,} tokens: " + ", ".join(f"{key} {x:.4f}" for key, x in merit.items()))

    bits = {"a byte": 8.0, **{f"counts, order {order}": counting_model(train, val, order) for order in range(3)},
            "xz": xz_bits_per_byte(train[:0], val),
            "xz after training text": xz_bits_per_byte(train, val), "this GPT": merit["bits_per_byte"]}
    for name, value in bits.items():
        print(f"{name:24s} {value:.3f} bits per byte")

    fig, (ax_bits, ax_position) = plt.subplots(1, 2, figsize=(11, 4.5))
    bars = ax_bits.barh(list(bits), list(bits.values()), color=[BLUE if name == "this GPT" else ORANGE for name in bits])
    ax_bits.bar_label(bars, fmt="%.2f", padding=3)
    ax_bits.invert_yaxis()
    ax_bits.set(xlabel="bits per byte of the validation text", xlim=(0, 9), title="fewer is better")
    position, mean, error = by_position(losses, model.config.block_size)
    ax_position.errorbar(position, mean, error, color=BLUE, marker="o", capsize=4, label="mean ± standard error")
    ax_position.set(xlabel="bytes read of the window", ylabel="loss (nats per byte)", title="more context, less surprise",
                    xscale="log")
    ax_position.set_xticks(position, position)
    ax_position.minorticks_off()
    ax_position.legend()
    path = save_figure(
        fig, figure_path(__file__, "evaluate", config.quick), title="How good is the model?",
        caption="Left: bits that each method needs for a byte of text it has not seen; counting models of order 0, 1 and 2 "
                "know the frequencies of single bytes, pairs and triples; xz looks for repeats. Right: the loss "
                "falls as the model reads more of its window, most of it in the first sixteen bytes: it uses its context.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
