"""Lesson 3.5 - where does attention go: are the first tokens sinks?

Reads validation text with the model of part_3/train.py and measures how much attention each key gets, and how much of each
head's goes to the first four tokens, against what an even spread would give them. What to see: in many trained models the
first tokens get far more than their share, because a softmax must put its weight somewhere (Xiao et al. 2024, figure 2). In
a model trained as briefly as this one, look whether any head does so at all: dots far above the dotted line.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, ORANGE, figure_path, heatmap, plt, save_figure
from part_2.corpus import load_corpus
from part_2.dataset import split_tokens
from part_3.modern_gpt import attention_maps, load_model
from part_3.train import RUNS


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_3/train.py")
    sinks: int = option(4, "first tokens to look at")
    n_windows: int = option(64, "windows of validation text to read")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), n_windows=4)

    def __post_init__(self):
        check_positive(self, "sinks", "n_windows")


def main(config):
    model, tokenizer, state = load_model(config.checkpoint)
    T = model.config.block_size
    if config.sinks >= T // 2:
        raise InputError(f"--sinks {config.sinks} must be below half the trained length {T}")
    _, text = split_tokens(tokenizer.encode_to_tensor(load_corpus(state["config"]["data"])), T)
    tokens = torch.stack([text[start:start + T] for start in torch.linspace(0, len(text) - T, config.n_windows).long()])
    late = [weights[:, :, T // 2:] for weights in attention_maps(model, tokens.long())]  # queries of the second half

    layers = range(1, len(late) + 1)
    fig, (ax_map, ax_sink) = plt.subplots(1, 2, figsize=(12, 4.4), width_ratios=(3, 2))
    by_key = torch.stack([weights.mean(dim=(0, 1, 2)) for weights in late])  # (L, T)
    image = heatmap(ax_map, by_key.clamp(min=1e-4).log10(), xlabel="key position", ylabel="layer", yticks=layers)
    fig.colorbar(image, ax=ax_map, label="mean weight, log10")
    ax_map.set_title("where attention goes, mean of all heads")
    share = torch.stack([weights[..., :config.sinks].sum(dim=-1).mean(dim=(0, 2)) for weights in late])  # (L, H)
    quarter = slice(T // 4, T // 4 + config.sinks)
    others = torch.stack([weights[..., quarter].sum(dim=-1).mean(dim=(0, 2)) for weights in late])
    even = sum(config.sinks / (query + 1) for query in range(T // 2, T)) / (T - T // 2)
    for x, values, color, marker, name in ((-0.1, share, BLUE, "o", f"first {config.sinks} tokens"),
                                           (0.1, others, ORANGE, "x", f"{config.sinks} tokens from {T // 4} on")):
        for head in range(values.shape[1]):
            ax_sink.plot([layer + x for layer in layers], values[:, head], marker, color=color,
                         label=name if head == 0 else None)
    ax_sink.axhline(even, color=BLACK, linestyle=":", label="if spread evenly")
    ax_sink.set(xlabel="layer", ylabel="share of a head's attention", title="every head", xticks=layers,
                ylim=(0, 1.6 * max(share.max(), even)))
    ax_sink.legend(loc="upper right")
    print(f"attention on the first {config.sinks} tokens: {share.mean():.1%} in the mean, {share.max():.1%} in the head "
          f"with most; an even spread would give {even:.1%}; the {config.sinks} from {T // 4} on get {others.mean():.1%}")
    path = save_figure(
        fig, figure_path(__file__, "attention_sinks", config.quick), title="Are the first tokens attention sinks?",
        caption=f"Queries {T // 2} to {T - 1} of {config.n_windows} windows. Left: a bright column at the left edge would "
                "be a sink; the bright right side is attention to near tokens. Right: heads above the dotted line give the "
                "first tokens more than their share; dropping these tokens from a cache then costs.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
