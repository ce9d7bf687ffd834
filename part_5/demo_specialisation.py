"""Lesson 5.3 - which tokens does each expert get? The routing of a model of part_5/train.py, looked at.

Sends validation text through the model and notes every token's best expert. What to see: whether experts have taken over
kinds of tokens (a bright cell in a column), whether the coloured text looks like grammar or like topics, and how much of the
choice the token alone explains, layer by layer.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLUE, COLORS, GREEN, ORANGE, YELLOW, figure_path, heatmap, plt, save_figure
from part_2.corpus import DATA_HELP, load_corpus
from part_5.hybrid import load_model, moe_layers
from part_5.specialisation import CLASSES, first_choices, lift, share_explained, token_class

RUNS = Path(__file__).resolve().parent / "runs"
BACKGROUNDS = (*COLORS, YELLOW, "#999999")


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_5/train.py")
    data: str = option("python-docs", DATA_HELP)
    n_tokens: int = option(11264, "tokens from the end of the text to look at; its last tenth is for validation")
    n_shown: int = option(260, "of these, how many are shown as coloured text")
    seed: int = option(0, "seed of the shuffling that tells chance from meaning")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), n_tokens=2048, n_shown=100)

    def __post_init__(self):
        check_positive(self, "n_tokens", "n_shown")


def draw_text(ax, pieces, experts):
    """Write the tokens' texts in lines, each on a background of its expert's colour."""
    column, row, width = 0, 0, 118
    for piece, expert in zip(pieces, experts):
        piece = piece.replace("\n", "¶")
        if column + len(piece) > width:
            column, row = 0, row + 1
        ax.text(column, -row, piece, family="monospace", fontsize=11, va="center", parse_math=False)
        ax.add_patch(plt.Rectangle((column, -row - 0.45), len(piece), 0.9, color=BACKGROUNDS[expert % len(BACKGROUNDS)],
                                   alpha=0.45, linewidth=0))
        column += len(piece)
    ax.set(xlim=(0, width), ylim=(-row - 0.6, 0.6))
    ax.axis("off")


def main(config):
    device = pick_device(config.device)
    model, tokenizer, _ = load_model(config.checkpoint, device)
    layers = moe_layers(model)
    if not layers:
        raise InputError(f"{config.checkpoint} is a dense model: it has no experts to look at")
    n_expert, block = layers[0].router.n_expert, model.config.block_size
    text = load_corpus(config.data)[-12 * config.n_tokens:]
    tokens = tokenizer.encode_to_tensor(text)[-config.n_tokens:]
    if len(tokens) < block:
        raise InputError(f"--data {config.data} gives {len(tokens)} tokens; the model reads {block} at a time")
    windows = tokens[len(tokens) % block:].view(-1, block)  # (B, T)
    experts = torch.cat([first_choices(model, part.to(device)) for part in windows.split(16)], dim=1).flatten(1).cpu()
    tokens = windows.flatten()
    pieces = [tokenizer.decode_bytes([token]) for token in tokens.tolist()]
    classes = torch.tensor([token_class(piece) for piece in pieces])

    fig, axes = plt.subplots(1, 3, figsize=(12, 4.8), width_ratios=(4, 4, 3))
    for ax, layer in zip(axes, (0, len(layers) - 1)):
        table = lift(classes, experts[layer], len(CLASSES), n_expert)
        image = heatmap(ax, table, xlabel="expert", ylabel="", xticks=range(n_expert),
                        yticks=CLASSES if ax is axes[0] else [""] * len(CLASSES), fmt="{:.1f}" if n_expert <= 8 else None,
                        vmin=0, vmax=4, interpolation="nearest")
        ax.set_title(f"{'first' if layer == 0 else 'last'} layer with experts")
        for expert in range(n_expert):
            own = tokens[experts[layer] == expert].bincount(minlength=tokenizer.vocab_size).topk(6)
            common = [repr(tokenizer.decode([token])) for token, n in zip(own.indices.tolist(), own.values) if n]
            print(f"layer {layer} expert {expert}: {(experts[layer] == expert).float().mean():5.1%} of the tokens, most "
                  f"often {' '.join(common)}")
    fig.colorbar(image, ax=axes[1], label="times as often as by chance")

    generator = torch.Generator().manual_seed(config.seed)
    previous = tokens.roll(1)  # the first token of each window sees none; one in `block`
    for name, values, color, marker in (("this token", tokens, BLUE, "o"), ("its class", classes, ORANGE, "s"),
                                        ("the token before", previous, GREEN, "^")):
        share = [share_explained(values, own, generator) for own in experts]
        axes[2].plot(range(len(layers)), share, color=color, marker=marker, label=name)
        print(f"share of the choice that {name} explains, by layer: {' '.join(f'{value:.2f}' for value in share)}")
    axes[2].set(xlabel="layer with experts", ylabel="share of the choice explained", ylim=(0, 1), xticks=range(len(layers)),
                title="what explains the choice")
    axes[2].legend(fontsize=9)
    command = command_line(__file__, config)
    print(save_figure(
        fig, figure_path(__file__, "specialisation", config.quick), title="Which tokens go to which expert",
        caption=f"{len(tokens):,} tokens of text, each by its best expert of {n_expert}. Left and middle: how many times as "
                "often a class of tokens goes to an expert as tokens in general do, 1 is no preference. Right: how "
                "much of the choice the token, its class, or the token before explains: mutual information as a share of "
                "the experts' entropy, 0 by chance, 1 if nothing else counts.", command=command))
    fig, ax = plt.subplots(figsize=(12, 4))
    draw_text(ax, [piece.decode("utf-8", errors="replace") for piece in pieces[-config.n_shown:]],
              experts[-1, -config.n_shown:].tolist())
    ax.legend(handles=[plt.Rectangle((0, 0), 1, 1, color=BACKGROUNDS[e % len(BACKGROUNDS)], alpha=0.45, label=e)
                       for e in range(n_expert)], title="expert", ncols=8, loc="upper center", bbox_to_anchor=(0.5, 0))
    print(save_figure(
        fig, figure_path(__file__, "specialisation_text", config.quick), title="Which expert reads what: a text",
        caption=f"The last {min(config.n_shown, len(pieces))} tokens of the text, each on the colour of its best expert in "
                "the last layer with experts; ¶ is a new line. Look for what the words of one colour have in common.",
        command=command))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
