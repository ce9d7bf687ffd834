"""Lesson 4.3 - how few seconds of training reach a given loss, and how low a loss do given seconds reach?

    python3 part_4/demo_speedrun.py --data FILE                  the sprint: stop as soon as --target is reached
    python3 part_4/demo_speedrun.py --data FILE --budget 150     the long run: the lowest loss after so many seconds

Characters, at most a million weights. The last tenth of the text is for validation, and each of its characters but the first
is predicted once; evaluations do not count as training time. What to see: most of the fall is over in the first tenth of the
time, while the model learns how frequent characters and pairs are; the rest is slow work.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, PRECISIONS, autocast, pick_device, pick_precision, set_seed, synchronize
from part_0.plotting import BLACK, BLUE, figure_path, plt, save_figure
from part_2.checkpoint import write_json
from part_2.corpus import DATA_HELP, load_corpus
from part_2.dataset import split_tokens
from part_2.evaluate import figures_of_merit, split_losses
from part_2.loss import cross_entropy
from part_2.run_directory import append_record, start_run
from part_4.speedrun_model import NgramGPT, NgramGPTConfig, shuffled_windows, speedrun_optimizers

RUNS = Path(__file__).resolve().parent / "runs"
SPRINT = (dict(block_size=64, n_layer=1, n_head=2, d_model=64, n_gram=4, n_rows=4608, d_table=64),  # shape, rates, decay
          dict(lr=0.03, embedding_lr=0.04, table_lr=0.04), 0.4)
LONG = (dict(block_size=128, n_layer=2, n_head=2, d_model=128, n_gram=5, n_rows=4352, d_table=32, dropout=0.1,
             ngram_dropout=0.2), dict(lr=0.01, embedding_lr=0.01, table_lr=0.02), 0.6)


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    out: str = option(str(RUNS / "speedrun"), "the run directory")
    target: float = option(1.90, "validation loss that ends the sprint, in nats per character")
    steps: int = option(50, "optimizer steps of the sprint, unless the target ends it before")
    budget: float | None = option(None, "seconds of training of the long run; the sprint when left out")
    batch_size: int = option(32, "windows a step")
    n_eval: int = option(20, "evaluations along the run")
    seed: int = option(0, "seed of weights and batches")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("auto", "of the matrix products", PRECISIONS)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(out=str(RUNS / "speedrun_quick"), steps=6, batch_size=4, n_eval=2)

    def __post_init__(self):
        check_positive(self, "target", "steps", "batch_size", "n_eval", *([] if self.budget is None else ["budget"]))
        if not self.out:
            raise InputError("--out must not be empty")


def draw(evaluations, summary, config):
    fig, ax = plt.subplots()
    ax.plot([record["seconds"] for record in evaluations], [record["val_loss"] for record in evaluations], "o-", color=BLUE)
    reached, outcome = summary["seconds_to_target"], "It"
    if config.budget is None:
        ax.axhline(config.target, color=BLACK, linestyle="--", label=f"target {config.target:g}")
        ax.legend()
        outcome = f"The target is {'not reached' if reached is None else f'reached after {reached:.2f} s'}: the loss"
    ax.set(xlabel="training time (seconds)", ylabel="validation loss (nats per character)",
           title=f"{summary['params']:,} weights, {summary['steps']:,} steps")
    return save_figure(
        fig, figure_path(__file__, "speedrun", config.quick), title="Loss over the seconds of training, with n-gram tables",
        caption=f"{outcome} begins at ln V = {evaluations[0]['val_loss']:.2f} and ends at {summary['val_loss']:.3f} nats a "
                f"character, after {summary['seconds']:.2f} s and {summary['tokens']:,} characters. Each dot is the loss of "
                "the whole validation split; the clock stands still while it is measured.",
        command=command_line(__file__, config))


def main(config):
    shape, rates, decay = SPRINT if config.budget is None else LONG
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    text = load_corpus(config.data)
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    train_tokens, val_tokens = split_tokens(torch.tensor([number[character] for character in text]), shape["block_size"])
    set_seed(config.seed)
    model = NgramGPT(NgramGPTConfig(len(number), **shape)).to(device)
    optimizers = speedrun_optimizers(model, **rates)
    generator = torch.Generator().manual_seed(config.seed)
    batches = shuffled_windows(train_tokens, config.batch_size, shape["block_size"], generator)
    if previous := start_run(config):
        print(f"the run that was in {config.out} is now in {previous}")
    evaluations, step, n_tokens, seconds, progress, reached = [], 0, 0, 0.0, 0.0, None
    while True:
        if progress * config.n_eval >= len(evaluations) or progress >= 1:
            losses = split_losses(model, val_tokens, dtype=dtype)
            evaluations.append(dict(step=step, tokens=n_tokens, seconds=seconds, val_loss=losses.double().mean().item()))
            append_record(config.out, "metrics.jsonl", evaluations[-1])
            print(f"step {step:5d}   {seconds:6.2f} s   validation loss {evaluations[-1]['val_loss']:.4f} nats/character")
            if config.budget is None and evaluations[-1]["val_loss"] <= config.target:
                reached = seconds
            if progress >= 1 or reached is not None:
                break
        started = time.perf_counter()
        inputs, targets = (part.to(device) for part in next(batches))
        with autocast(device, dtype):
            logits = model(inputs)
        model.zero_grad(set_to_none=True)
        cross_entropy(logits, targets).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (1 - progress) / decay)  # linear, to zero at the end
            optimizer.step()
        synchronize(device)
        seconds += time.perf_counter() - started
        step, n_tokens = step + 1, n_tokens + inputs.numel()
        # The sprint counts steps, so that a seed gives the same run on any machine; a budget is one of time.
        progress = step / config.steps if config.budget is None else seconds / config.budget

    merit = figures_of_merit(losses, len(text[-len(losses):].encode("utf-8")))
    summary = {**merit, "target": config.target if config.budget is None else None, "seconds_to_target": reached,
               "steps": step, "tokens": n_tokens, "params": model.n_params(), "seconds": seconds,
               "tokens_per_second": n_tokens / seconds, "budget": config.budget, "seed": config.seed}
    write_json(Path(config.out) / "summary.json", summary)
    print(draw(evaluations, summary, config))
    print(json.dumps(summary, indent=2))
    return [*evaluations, summary]


if __name__ == "__main__":
    run_script(main, Config, __doc__)
