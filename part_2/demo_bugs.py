"""Lesson 2.6 - what do the classic mistakes of this part look like?

Trains the same tiny GPT with the right targets and with targets that are not shifted, and lets a top-p that drops the
crossing token rule on the right model's distributions. What to see: left, a loss that is too good to be true; middle and
right, a nucleus that holds less than p, and often nothing. Neither mistake raises an error in training.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import contextlib
import io
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, RED, figure_path, plt, save_figure
from part_2 import sampling, train
from part_2.bugs import BUGS
from part_2.byte_tokenizer import ByteTokenizer
from part_2.checkpoint import load_model
from part_2.corpus import DATA_HELP, load_corpus
from part_2.dataset import get_batch, split_tokens
from part_2.evaluate import windows_loss
from part_2.run_directory import read_records

RIGHT, WRONG = dict(color=BLUE, linestyle="-", label="right"), dict(color=RED, linestyle="--", label="wrong")
SHIFT, TOP_P = BUGS


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    steps: int = option(150, "optimizer steps of each run")
    block_size: int = option(64, "context length in tokens")
    d_model: int = option(64, "model width")
    n_windows: int = option(64, "validation windows that are looked at")
    p: float = option(0.5, "the p of the printed figures")
    seed: int = option(1, "seed of weights, batches and samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=10, block_size=16, d_model=16, n_windows=4)

    def __post_init__(self):
        check_positive(self, "steps", "block_size", "d_model", "n_windows")
        if not 0 < self.p < 1:
            raise InputError(f"--p must be above 0 and below 1, not {self.p}")
        self.run_config("out")  # or refuse

    def run_config(self, out):
        """The flags of a run of part_2/train.py into the directory `out`."""
        return train.Config(data=self.data, out=str(out), steps=self.steps, block_size=self.block_size, n_layer=2, n_head=2,
                            d_model=self.d_model, warmup_steps=min(10, self.steps), eval_every=self.steps, log_every=1,
                            seed=self.seed, device="cpu", precision="fp32")


def run(config, out):
    """Train into `out`. Returns the loss of each step as the run reports it, its sample's 200 bytes, and the model."""
    with contextlib.redirect_stdout(io.StringIO()):
        history = train.main(config.run_config(out))
    text = read_records(out, "samples.jsonl")[-1]["text"]
    return [record["loss"] for record in history if "loss" in record], text[4:], load_model(out / "last.pt")[0]


def nucleus(logits, p):
    """Mean probability that top-p keeps, and the share of contexts for which it keeps no token. logits: (N, V)."""
    kept = sampling.apply_top_p(logits, p).isfinite()
    return (logits.softmax(dim=-1) * kept).sum(dim=-1).mean().item(), (~kept.any(dim=-1)).float().mean().item()


def main(config):
    tokens = ByteTokenizer(special_tokens=()).encode_to_tensor(load_corpus(config.data))
    batch = get_batch(split_tokens(tokens, config.block_size)[1], config.n_windows, config.block_size,
                      torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        losses, text, model = run(config, Path(folder) / "right")
        with SHIFT.installed():
            wrong_losses, wrong_text, wrong_model = run(config, Path(folder) / "wrong")
    true_loss, wrong_true_loss = (windows_loss(each, *batch) for each in (model, wrong_model))
    with torch.no_grad():
        logits = model(batch[0]).flatten(0, 1)  # (B, T, V) -> (N, V)
    grid = [0.05 * i for i in range(1, 20)]
    right, here = [nucleus(logits, p) for p in grid], nucleus(logits, config.p)
    with TOP_P.installed():
        wrong, wrong_here = [nucleus(logits, p) for p in grid], nucleus(logits, config.p)

    print(SHIFT.describe(
        f"reports {losses[-1]:.2f} nats, predicts the next byte with {true_loss:.2f}, {len(set(text))} different characters",
        f"reports {wrong_losses[-1]:.3f} nats, predicts the next byte with {wrong_true_loss:.2f}, "
        f"{len(set(wrong_text))} different characters: {wrong_text[:12]!r}"))
    print(TOP_P.describe(*(f"at p {config.p:g} keeps {mass:.2f} of the probability, nothing in {empty:.0%} of the contexts"
                           for mass, empty in (here, wrong_here))))
    fig, (ax_loss, ax_mass, ax_empty) = plt.subplots(1, 3, figsize=(13, 4.4))
    ax_loss.plot(losses, **RIGHT)
    ax_loss.plot(wrong_losses, **WRONG)
    ax_loss.set(xlabel="optimizer step", ylabel="reported loss (nats per byte)", title=SHIFT.name, ylim=(0, None))
    for ax, column in ((ax_mass, 0), (ax_empty, 1)):
        ax.plot(grid, [row[column] for row in right], **RIGHT)
        ax.plot(grid, [row[column] for row in wrong], **WRONG)
        ax.set(xlabel="p", ylim=(-0.03, 1.03), title=TOP_P.name)
    ax_mass.plot([0, 1], [0, 1], color=BLACK, linestyle=":", linewidth=1, label="p")
    ax_mass.set(ylabel="probability kept (mean)")
    ax_empty.set(ylabel="share of contexts with nothing kept")
    for ax in (ax_loss, ax_mass, ax_empty):
        ax.legend()
    print(save_figure(
        fig, figure_path(__file__, "bugs", config.quick), title="Two mistakes of Part 2 beside the right run",
        caption=f"Left: with targets that are the inputs the reported loss falls to {wrong_losses[-1]:.3f} nats in "
                f"{config.steps} steps; the same model predicts the next byte with {wrong_true_loss:.2f}. Middle and right: "
                f"top-p on {len(logits):,} distributions of the right model. Without the crossing token less than p is kept "
                f"(dotted: p), and at p {config.p:g} in {wrong_here[1]:.0%} of the contexts nothing.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
