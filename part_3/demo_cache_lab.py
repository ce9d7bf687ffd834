"""Lesson 3.4 - are the caches exactly right?

For every combination of cache, mask, number of key-value heads, batch and way of reading the prompt: the largest difference
between the logits with the cache and those of one plain pass over each prompt alone. To show that this would see a mistake,
a last row reads with a window that is one token too long. What to see: nothing but rounding anywhere above that row.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import itertools
from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import figure_path, heatmap, plt, save_figure
from part_3.generate import pad_left
from part_3.modern_gpt import ModernGPT, ModernGPTConfig, reread

CACHES = ("none", "static", "rolling")
HEADS = {"MHA": 4, "GQA": 2}  # key-value heads of 4


@dataclass(frozen=True)
class Config:
    n_tokens: int = option(40, "length of the longest prompt")
    window: int = option(7, "places of the window, sinks included")
    sinks: int = option(3, "of these, where there are sinks")
    chunk: int = option(7, "tokens of a chunk where the prompt is read in chunks")
    seed: int = option(0, "seed of weights and prompts")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_tokens=12, window=5, sinks=2, chunk=4)

    def __post_init__(self):
        if not (0 < self.sinks < self.window < self.n_tokens) or not 0 < self.chunk <= self.n_tokens:
            raise InputError("needs 0 < --sinks < --window < --n_tokens and 0 < --chunk <= --n_tokens, not "
                             f"{self.sinks}, {self.window}, {self.n_tokens} and {self.chunk}")


@torch.inference_mode()
def largest_difference(model, reader, prompts, cache, chunk):
    """Between the logits of each prompt alone in one plain pass of `model`, and of all together in chunks by `reader`."""
    tokens, positions = pad_left(prompts)
    T = tokens.shape[1]
    kept = None if cache == "none" else reader.new_cache(cache, len(prompts), T)
    parts = []
    for start in range(0, T, chunk):
        seen = slice(0 if kept is None else start, start + chunk)  # without a cache everything so far is read again
        logits = reader(tokens[:, seen], None if positions is None else positions[:, seen], kept)
        parts.append(logits[:, start - seen.start:])
    together = torch.cat(parts, dim=1)
    return max((together[row, T - len(prompt):] - model(prompt[None])[0]).abs().max().item()
               for row, prompt in enumerate(prompts))


def main(config):
    T, window, sinks = config.n_tokens, config.window, config.sinks
    masks = {"full": dict(window=T), "window": dict(window=window),
             "window\n+ sinks": dict(window=window - sinks, sinks=sinks)}
    chunks = {"in one": T, "in chunks": config.chunk, "token by token": 1}
    batches = {"one\nprompt": [T], "ragged": [T, 3 * T // 4, config.chunk - 1 or 1, 1]}
    rows = list(itertools.product(CACHES, chunks))
    columns = list(itertools.product(masks, HEADS, batches))
    differences = torch.full((len(rows) + 1, len(columns)), float("nan"))
    for j, (mask, heads, batch) in enumerate(columns):
        set_seed(config.seed)
        limited = ModernGPT(ModernGPTConfig(64, T, 3, 4, 32, n_kv_head=HEADS[heads], **masks[mask])).eval()
        for parameter in limited.parameters():
            torch.nn.init.normal_(parameter, std=0.3)  # so that attention is far from even, and a wrong mask shows
        model = reread(limited, window=None, sinks=0) if mask == "full" else limited
        prompts = [torch.randint(64, (length,)) for length in batches[batch]]
        for i, (cache, reading) in enumerate(rows):
            reader = limited if cache == "rolling" else model  # a ring needs a window, if only one as long as the text
            differences[i, j] = largest_difference(model, reader, prompts, cache, chunks[reading])
        if mask != "full":
            wrong = reread(limited, window=limited.config.window + 1)
            differences[-1, j] = largest_difference(model, wrong, prompts, "none", T)
    worst, control = differences[:-1].max().item(), differences[-1].nan_to_num(float("inf")).min().item()
    print(f"{differences[:-1].numel()} combinations, largest difference {worst:.1e}; "
          f"with a window one too long at least {control:.1e}")

    fig, ax = plt.subplots(figsize=(11, 6))
    image = heatmap(ax, differences.clamp(min=1e-9).log10(), xlabel="mask, heads, batch", ylabel="cache, way of reading",
                    yticks=[*(f"{cache}, {reading}" for cache, reading in rows), "a window one too long"], vmin=-8, vmax=0,
                    cmap="cividis")
    ax.set_xticks(range(len(columns)), ["\n".join(column) for column in columns], fontsize=9)
    fig.colorbar(image, ax=ax, label="largest difference of a logit, log10")
    print(save_figure(
        fig, figure_path(__file__, "cache_lab", config.quick),
        title="Static and rolling caches give the logits of the plain pass",
        caption=f"{differences[:-1].numel()} combinations; the largest difference is {worst:.0e}, the rounding of fp32. The "
                "last row shows what a mistake would look like.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
