"""Lesson 2.5 - how do temperature, top-k and top-p change what a model writes?

Takes the trained model's distribution of the next byte after a prompt, and draws it under each setting; then lets it write
with each. What to see: a low temperature sharpens, a high one flattens; top-k cuts after k bars, top-p after the bar that
crosses the threshold. In the text: greedy decoding repeats itself, a high temperature misspells.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, check_text, command_line, option, run_script
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_2.checkpoint import load_model
from part_2.sampling import filter_logits, generate
from part_2.train import RUNS

SETTINGS = {"temperature 0.5": dict(temperature=0.5), "temperature 1": dict(temperature=1.0),
            "temperature 2": dict(temperature=2.0), "top-k 4": dict(top_k=4), "top-p 0.5": dict(top_p=0.5),
            "temperature 2, top-p 0.5": dict(temperature=2.0, top_p=0.5)}


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_2/train.py")
    prompt: str = option("The ", "text to continue")
    n_new: int = option(120, "bytes to write with each setting")
    n_bars: int = option(16, "most probable bytes to draw")
    seed: int = option(0, "seed of the draws")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), n_new=8)

    def __post_init__(self):
        check_positive(self, "n_new")
        if not 1 <= self.n_bars <= 256:
            raise InputError(f"--n_bars must be from 1 to 256, not {self.n_bars}")
        check_text(self, "prompt")


@torch.no_grad()
def main(config):
    model, tokenizer, _ = load_model(config.checkpoint)
    prompt = torch.tensor([tokenizer.encode(config.prompt)])
    logits = model(prompt[:, -model.config.block_size:])[0, -1]  # (V,)
    ranked = logits.topk(config.n_bars).indices
    labels = [chr(id).replace(" ", "␣") if 32 <= id < 127 else {10: "\\n"}.get(id, f"{id:02x}") for id in ranked.tolist()]

    fig, axes = plt.subplots(2, 3, figsize=(11, 6), sharex=True, sharey=True)
    for ax, (name, setting) in zip(axes.flat, SETTINGS.items()):
        probabilities = filter_logits(logits, **setting).softmax(-1)
        kept = int((probabilities > 0).sum())
        ax.bar(range(config.n_bars), probabilities[ranked].tolist(), color=ORANGE if kept < len(logits) else BLUE)
        ax.set_title(f"{name}\n{kept} of {len(logits)} tokens possible")
    axes[0, 0].set_xticks(range(config.n_bars), labels, family="monospace")
    for ax in axes[:, 0]:
        ax.set_ylabel("probability")
    for ax in axes[-1]:
        ax.set_xlabel("next byte, best first")

    for name, setting in {"greedy (temperature 0)": dict(temperature=0.0), **SETTINGS}.items():
        generator = torch.Generator().manual_seed(config.seed)
        written = generate(model, prompt, config.n_new, generator=generator, **setting)
        print(f"{name:26s} {tokenizer.decode(written[0].tolist())!r}")
    path = save_figure(
        fig, figure_path(__file__, "sampling", config.quick),
        title="The next byte after “{}”".format(config.prompt.replace(" ", "␣")),
        caption="The same logits under six settings. Blue: every token stays possible, temperature only sharpens or "
                "flattens. Orange: top-k and top-p rule tokens out and share their probability among the rest; top-p keeps "
                "the token that crosses the threshold, and after a high temperature it keeps more of them.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
