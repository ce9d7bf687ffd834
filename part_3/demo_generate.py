"""Lesson 3.4 - how does the model write, and where does it hesitate?

Continues several prompts of different lengths in one batch with the model of part_3/train.py, each up to the end of its
line, and shows the first one on the screen as it is written. Then every byte is drawn on the colour of its surprise, -log2
of the probability that the model gave it. What to see: it hesitates where a word begins and is sure where one ends.
`--cache none` writes the same text, more slowly.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import math
import time
from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, check_text, command_line, option, run_script
from part_0.plotting import figure_path, plt, save_figure
from part_2.loss import token_losses
from part_2.sampling import check_sampling
from part_3.generate import ENDED, stream
from part_3.modern_gpt import load_model
from part_3.train import RUNS

WIDTH = 64  # characters of a drawn line


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "train" / "best.pt"), "a checkpoint of part_3/train.py")
    prompt: str = option("The |A class |If the object is a string, ", "texts to continue, separated by |")
    n_new: int = option(160, "most bytes to write for each")
    temperature: float = option(0.6, "0 takes the best byte every time")
    cache: str = option("static", "how earlier tokens are kept", ("static", "none"))
    seed: int = option(0, "seed of the draws")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), n_new=12)

    def __post_init__(self):
        check_positive(self, "n_new")
        check_text(self, "prompt")
        check_sampling(self.temperature, None, None)
        if not all(self.prompt.split("|")):
            raise InputError("--prompt must not have an empty text in it")


def write(model, tokenizer, prompts, config):
    """Stream the continuations, showing the first. Returns a list of ids for each prompt."""
    written = [[] for _ in prompts]
    generator = torch.Generator().manual_seed(config.seed)
    print(tokenizer.decode(prompts[0]), end="", flush=True)
    for tokens in stream(model, prompts, config.n_new, config.temperature, generator=generator, cache=config.cache,
                         stop_ids=tokenizer.encode("\n")):
        for row, token in zip(written, tokens.tolist()):
            if token != ENDED:
                row.append(token)
        if tokens[0] != ENDED:
            print(tokenizer.decode([tokens[0].item()]), end="", flush=True)
    print()
    return written


@torch.no_grad()
def surprise(model, prompt, written):
    """Bits of each written byte, at temperature 1: one plain pass over the whole text. Returns (n,)."""
    text = torch.tensor(prompt + written)
    return token_losses(model(text[None, :-1])[0], text[1:])[len(prompt) - 1:] / math.log(2)


def main(config):
    model, tokenizer, _ = load_model(config.checkpoint)
    prompts = [tokenizer.encode(text) for text in config.prompt.split("|")]
    started = time.perf_counter()
    written = write(model, tokenizer, prompts, config)
    n_bytes, seconds = sum(map(len, written)), time.perf_counter() - started
    lines = [(prompt, row, -(-(len(prompt) + len(row)) // WIDTH)) for prompt, row in zip(prompts, written)]
    fig, ax = plt.subplots(figsize=(12, 0.8 + 0.34 * sum(count + 1 for *_, count in lines)))
    top, image = 0, None
    for prompt, row, count in lines:
        bits = torch.cat((torch.full((len(prompt),), float("nan")), surprise(model, prompt, row)))
        cells = torch.full((count * WIDTH,), float("nan"))
        cells[:len(bits)] = bits
        image = ax.imshow(cells.view(count, WIDTH), extent=(0, WIDTH, top + count, top), vmin=0, vmax=8, cmap="Oranges",
                          aspect="auto")
        for i, id in enumerate(prompt + row):
            ax.text(i % WIDTH + 0.5, top + i // WIDTH + 0.55, chr(id) if 32 < id < 127 else "", ha="center", va="center",
                    family="monospace", fontsize=11, parse_math=False)
        print(f"{len(row):4d} bytes, {bits.nanmean():.2f} bits each: {tokenizer.decode(prompt + row)!r}")
        top += count + 1
    print(f"{n_bytes / seconds:.0f} bytes/s, cache: {config.cache}")
    ax.set(xlim=(0, WIDTH), ylim=(top - 1, 0), xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    fig.colorbar(image, ax=ax, label="surprise (bits)")
    path = save_figure(
        fig, figure_path(__file__, "generate", config.quick), title="Where the model hesitates",
        caption="Prompts (white) and what the model wrote, byte by byte. The darker a field, the less the model expected "
                "what was then drawn: it hesitates at the beginning of a word and knows how words end. Each text ends at a "
                "line's end, or after the most bytes allowed.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
