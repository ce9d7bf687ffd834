"""Lesson 3.6 - what do the classic mistakes of this part look like?

Trains a small model with and without its final norm, on the same batches. Then the right one reads texts in one pass, and in
chunks through a cache: once where the tokens of a chunk see those after them, and once, under a sliding window, where the
keys have been cut to the last window for all queries of the chunk. What to see: left, by how much the loss stays behind;
middle and right, where in the text the logits begin to differ from those of the one pass.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import PRECISIONS
from part_0.plotting import BLACK, BLUE, RED, band, figure_path, plt, save_figure
from part_2.dataset import get_batch
from part_2.loss import token_losses
from part_3.bugs import BUGS
from part_3.modern_gpt import reread
from part_3.side_by_side import ComparisonConfig, compare

RIGHT, WRONG = dict(color=BLUE, linestyle="-", label="right"), dict(color=RED, linestyle="--", label="wrong")
NORM, CHUNK, CROPPED = BUGS
LEAST = 1e-8  # differences below are drawn as this: a logarithmic axis has no zero


@dataclass(frozen=True)
class Config(ComparisonConfig):
    steps: int = option(100, "optimizer steps of each run")
    n_seed: int = option(2, "seeds, i.e. runs of each variant")
    precision: str = option("fp32", "of the matrix products; on a CPU small ones are slower in bf16", PRECISIONS)
    chunk: int = option(16, "tokens that are given to the cache at a time; also the window's width")
    n_windows: int = option(64, "validation windows that are read")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, chunk=4, n_windows=4)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "chunk", "n_windows")


@torch.inference_mode()
def read_in_chunks(model, tokens, kind, chunk):
    """The logits (B, T, V) of tokens (B, T) that are given to an empty cache `chunk` at a time."""
    cache = model.new_cache(kind, *tokens.shape)
    return torch.cat([model(part, cache=cache) for part in tokens.split(chunk, dim=1)], dim=1)


def compare_reading(bug, model, batch, kind, chunk):
    """Read right and with the mistake. Returns for each the largest difference of a logit from the pass without a cache by
    position (T,), the mean over the texts, and the loss in nats per byte."""
    inputs, targets = batch
    with torch.inference_mode():
        truth = model(inputs)
    logits = [read_in_chunks(model, inputs, kind, chunk)]
    with bug.installed():
        logits.append(read_in_chunks(model, inputs, kind, chunk))
    return [((each - truth).abs().amax(dim=-1).mean(dim=0).cpu(), token_losses(each, targets).mean().item())
            for each in logits]


def main(config):
    right = compare(config, {"right": {}})["right"]
    with NORM.installed():
        wrong = compare(config, {"wrong": {}})["wrong"]
    final, wrong_final = ([losses[-1] for losses in runs.val_loss] for runs in (right, wrong))
    print(NORM.describe(*(f"validation loss after {config.steps} steps {mean(losses):.2f} nats per byte "
                          f"({', '.join(f'{loss:.2f}' for loss in losses)})" for losses in (final, wrong_final))))
    model = right.models[0]
    batch = [part.to(model.head.weight.device) for part in get_batch(
        config.load_tokens()[1], config.n_windows, config.block_size, torch.Generator().manual_seed(0))]
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.4))
    for runs, style in ((right, RIGHT), (wrong, WRONG)):
        band(axes[0], runs.steps, runs.val_loss, **style)
    axes[0].set(xlabel="optimizer step", ylabel="validation loss (nats per byte)", title=NORM.name)
    worst = {}
    for ax, bug, reader, kind in ((axes[1], CHUNK, model, "static"),
                                  (axes[2], CROPPED, reread(model, window=config.chunk), "rolling")):
        results = compare_reading(bug, reader, batch, kind, config.chunk)
        for (difference, _), style in zip(results, (RIGHT, WRONG)):
            ax.plot(difference.clamp(min=LEAST), **style)
        for start in range(config.chunk, config.block_size, config.chunk):
            ax.axvline(start, color=BLACK, linestyle=":", linewidth=1)
        ax.set(yscale="log", ylim=(LEAST / 2, 100), xlabel="position in the text", ylabel="largest difference of a logit",
               title=bug.name)
        worst[bug] = [difference.max().item() for difference, _ in results]
        print(bug.describe(*(f"logits differ by up to {difference.max():.2g} from those of one pass, loss {loss:.3f} nats "
                             "per byte" for difference, loss in results)))
    for ax in axes:
        ax.legend(loc="upper right" if ax is axes[0] else "center right")
    print(save_figure(
        fig, figure_path(__file__, "bugs", config.quick), title="Three mistakes of Part 3 beside the right run",
        caption=f"Left: validation loss with and without the final norm, {config.n_seed} seeds on the same batches, mean "
                f"and range. Middle, right: texts read in chunks of {config.chunk} tokens (dotted lines) through a cache, "
                f"against one pass without it; mean over {config.n_windows} texts, all below {LEAST:.0e} drawn there. "
                "Middle: the tokens of a chunk see those after them: logits are off by up to "
                f"{worst[CHUNK][1]:.2g} instead of {worst[CHUNK][0]:.1g}. Right: a window of {config.chunk}, the keys cut "
                f"to the last {config.chunk} for all queries of a chunk: off by up to {worst[CROPPED][1]:.2g} instead of "
                f"{worst[CROPPED][0]:.1g}.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
