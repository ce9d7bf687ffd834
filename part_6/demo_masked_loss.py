"""Lesson 6.2 - what does the model learn from in a conversation, and what does packing save?

Takes a batch of tinyworld conversations in two forms, padded (one a row) and packed (as many as fit), colours each place by
what it holds, and lets an untrained model take steps with both. What to see: few places are learnt from, the answers' alone;
the padded form is half empty, the packed one nearly full; the loss is the same, and a step takes less time. The tokenizer is
learnt here from a little text.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import time
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, PRECISIONS, pick_device, pick_precision, set_seed, synchronize
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_2.tinyworld_text import tinyworld
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_4.grad_accumulation import accumulate_gradients
from part_6.chat_data import turn
from part_6.collator import IGNORE, pack, pad, shift
from part_6.prompt_template import chat_tokenizer, encode_chat
from part_6.tasks import make_tasks

LEARNT, CONTEXT, EMPTY = range(3)
KINDS = {"learnt from": ORANGE, "context": BLUE, "empty": "#DDDDDD"}  # what a place holds, in the order of these numbers
COLORS = list(KINDS.values())


@dataclass(frozen=True)
class Config:
    n_conversations: int = option(64, "conversations of the batch")
    block_size: int = option(128, "places of a packed row")
    n_layer: int = option(3, "Transformer blocks")
    n_head: int = option(4, "attention heads")
    d_model: int = option(128, "model width")
    rounds: int = option(15, "timed steps of each form, in turn")
    n_zoomed: int = option(42, "places of the last packed row to be read")
    seed: int = option(0, "of the conversations and the weights")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("auto", "of the matrix products", PRECISIONS)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_conversations=8, n_layer=1, d_model=16, n_head=2, rounds=2)

    def __post_init__(self):
        check_positive(self, "n_conversations", "block_size", "n_layer", "n_head", "d_model", "rounds", "n_zoomed")
        if self.d_model % (2 * self.n_head):
            raise InputError(f"--d_model {self.d_model} must be divisible by twice --n_head {self.n_head}")


def kinds(batch):
    """LEARNT, CONTEXT or EMPTY for each place, (B, T)."""
    return torch.where(batch.targets != IGNORE, LEARNT, torch.where(batch.segments >= 0, CONTEXT, EMPTY)).cpu().numpy()


def take_step(model, optimizer, batch, dtype):
    """One training step. Returns its loss in nats per learnt token and its seconds."""
    synchronize(batch.inputs.device)
    started = time.perf_counter()
    loss = accumulate_gradients(model, batch.inputs, batch.targets, dtype=dtype,
                                context={"positions": batch.positions, "segments": batch.segments}).item()
    optimizer.step()
    optimizer.zero_grad()
    synchronize(batch.inputs.device)
    return loss, time.perf_counter() - started


def draw_rows(ax, batch, name, width):
    """A batch as coloured places on an axis of `width`, conversations apart by a white line."""
    ax.imshow(kinds(batch), cmap=ListedColormap(COLORS), vmin=0, vmax=2, aspect="auto", interpolation="none")
    B, T = batch.inputs.shape
    for row, begins in enumerate(batch.positions == 0):
        ax.vlines(begins.nonzero()[1:].numpy() - 0.5, row - 0.5, row + 0.5, color="white", linewidth=3)
    ax.hlines([row - 0.5 for row in range(B)], -0.5, T - 0.5, color="white", linewidth=0.6)
    ax.set(xlim=(-0.5, width - 0.5), xlabel="place (tokens)", ylabel="row", title=f"{name}: {B} rows of {T} places")
    ax.yaxis.get_major_locator().set_params(integer=True)
    ax.grid(False)


def draw_tokens(ax, batch, tokenizer, n):
    """The first n places of the last row as text: what goes in, and below it what shall come out."""
    for t, kind in enumerate(kinds(batch)[-1, :n]):
        target = LEARNT if kind == LEARNT else EMPTY
        for y, id, cell in ((1, batch.inputs[-1, t], kind), (0, batch.targets[-1, t], target)):
            ax.add_patch(plt.Rectangle((t - 0.47, y - 0.47), 0.94, 0.94, color=COLORS[cell], linewidth=0))
            ax.text(t, y, "" if cell == EMPTY else tokenizer.decode([id.item()]), rotation=90, ha="center", va="center",
                    fontsize=12, parse_math=False, color="white" if cell == CONTEXT else "black")
        if t and batch.positions[-1, t] == 0:
            ax.axvline(t - 0.5, color="black", linewidth=3)
    ax.set(xlim=(-0.6, n - 0.4), ylim=(-0.55, 1.55), xlabel="place (tokens)", yticks=[0, 1], yticklabels=["target", "input"],
           title="the last packed row; at a black line another conversation begins")
    ax.grid(False)


def main(config):
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    tokenizer = chat_tokenizer(BPETokenizer(train_bpe(count_chunks([tinyworld(200_000)]), 512)[1]))
    examples = [shift(*encode_chat(turn(task.prompt, task.answer), tokenizer))
                for task in make_tasks("train", config.n_conversations, config.seed)]
    longest = max(len(inputs) for inputs, _ in examples)
    if longest > config.block_size:
        raise InputError(f"--block_size {config.block_size} is less than the longest conversation, {longest} tokens")
    batches = {"padded": pad(examples), "packed": pack(examples, config.block_size)}
    sizes = ModernGPTConfig(tokenizer.vocab_size, config.block_size, config.n_layer, config.n_head, config.d_model)
    learners, steps = {}, {name: [] for name in batches}
    for name, batch in batches.items():
        set_seed(config.seed)
        model = ModernGPT(sizes).to(device)
        learners[name] = model, torch.optim.AdamW(model.parameters()), batch.to(device), dtype
    for _ in range(config.rounds + 1):
        for name, learner in learners.items():
            steps[name].append(take_step(*learner))
    losses = {name: taken[0][0] for name, taken in steps.items()}  # of the first step: the weights are still the same
    ratios = [padded[1] / packed[1] for padded, packed in zip(*steps.values())][1:]  # the first also sets up memory
    shares = {name: 100 * np.bincount(kinds(batch).flatten(), minlength=3) / batch.inputs.numel()
              for name, batch in batches.items()}
    for name, batch in batches.items():
        held = ", ".join(f"{share:.1f} % {kind}" for kind, share in zip(KINDS, shares[name]))
        print(f"{name}: {' x '.join(map(str, batch.inputs.shape))} places, {held}; loss {losses[name]:.6f} nats per token")
    print(f"a padded step takes {median(ratios):.2f} times as long as a packed one (median of {config.rounds} rounds, "
          f"{min(ratios):.2f} to {max(ratios):.2f}; {dtype} on {device.type})")

    fig = plt.figure(figsize=(12, 11))
    n_rows = [len(batch.inputs) for batch in batches.values()]
    # A row is as high in both: areas can be compared.
    grid = fig.add_gridspec(3, 2, width_ratios=(4, 1), height_ratios=(*n_rows, 0.5 * sum(n_rows)))
    for i, (name, batch) in enumerate(batches.items()):
        draw_rows(fig.add_subplot(grid[i, 0]), batch, name, config.block_size)
    fig.axes[0].legend(handles=[Patch(color=color, label=name) for name, color in KINDS.items()], loc="center right")
    ax_shares, ax_time = grid[:2, 1].subgridspec(2, 1).subplots()
    for kind, color in enumerate(COLORS):
        bars = ax_shares.bar(list(shares), [share[kind] for share in shares.values()], color=color,
                             bottom=[share[:kind].sum() for share in shares.values()])
        ax_shares.bar_label(bars, fmt="%.0f", label_type="center", color="white" if kind == CONTEXT else "black")
    ax_shares.set(ylabel="% of the places", title="what places hold")
    ax_time.bar(list(steps), [median(ratios), 1], color="0.7")
    ax_time.plot([0] * len(ratios), ratios, "o", color="black", markersize=3)
    ax_time.set(ylabel="packed = 1", title="time of a step")
    draw_tokens(fig.add_subplot(grid[2, :]), batches["packed"], tokenizer, min(config.n_zoomed, config.block_size))
    path = save_figure(
        fig, figure_path(__file__, "masked_loss", config.quick), title="What is learnt from, and what packing saves",
        caption=f"The same {len(examples)} conversations, padded and packed. Orange places have a target: a token of an "
                "answer, or its end. Blue ones are only read, grey ones hold nothing. White lines part conversations, "
                f"which do not see each other. The losses differ by {abs(losses['padded'] - losses['packed']):.0e} nats; a "
                f"padded step takes {median(ratios):.1f} times as long (median and points: {config.rounds} rounds, taken in "
                "turn). Below: a place's target is the next place's input.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
