"""Lesson 4.3 - how few seconds of training reach a given loss, and how low a loss do given seconds reach?

    python3 part_4/demo_speedrun.py --data FILE                  the sprint: stop as soon as --target is reached
    python3 part_4/demo_speedrun.py --data FILE --budget 150     the long run: the lowest loss after so many seconds

Characters, at most a million weights. The last tenth of the text is for validation, and each of its characters but the first
is predicted once; evaluations do not count as training time. After the sprint comes the ladder that led to it: each rung is
the one before with one more idea and the rates that suit it. What to see: how much shorter each makes the way to that loss.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, PRECISIONS, autocast, pick_device, pick_precision, set_seed, synchronize
from part_0.plotting import BLACK, SEQUENTIAL, figure_path, plt, save_figure
from part_2.checkpoint import write_json
from part_2.corpus import DATA_HELP, load_corpus
from part_2.dataset import get_batch, split_tokens
from part_2.evaluate import figures_of_merit, split_losses
from part_2.loss import cross_entropy
from part_2.run_directory import append_record, start_run
from part_4.speedrun_model import NgramGPT, NgramGPTConfig, shuffled_windows, speedrun_optimizers

RUNS = Path(__file__).resolve().parent / "runs"
LINE = "{name:26s} step {steps:5d}   {seconds:6.2f} s   validation loss {val_loss:.4f} nats/character"


@dataclass(frozen=True)
class Recipe:
    """A model's shape and how it is trained; the rates fall linearly to zero over the last `decay` of the run."""

    name: str
    shape: dict
    rates: dict
    optimizer: str  # of the blocks' matrices: adamw, muon
    precision: str  # fp32, or auto for --precision
    windows: str  # random: drawn with replacement; shuffled: each once
    batch_size: int
    steps: int
    decay: float = 1.0


MODERN = Recipe("4 blocks, C=128", dict(block_size=64, n_layer=4, n_head=4, d_model=128), dict(lr=4e-3, embedding_lr=4e-3),
                optimizer="adamw", precision="fp32", windows="random", batch_size=12, steps=700)
BF16 = replace(MODERN, name="+ bf16", precision="auto")
MUON = replace(BF16, name="+ Muon, 32 shuffled windows", optimizer="muon", rates=dict(lr=0.01, embedding_lr=0.01),
               windows="shuffled", batch_size=32, steps=130)
FLAT = replace(MUON, name="2 blocks", shape=MUON.shape | dict(n_layer=2), steps=180)
TABLES = replace(FLAT, name="+ n-gram tables", shape=FLAT.shape | dict(n_gram=4, n_rows=4608, d_table=32),
                 rates=FLAT.rates | dict(table_lr=0.02), steps=80)
SMALL = replace(TABLES, name="1 block, C=64, wide rows", rates=dict(lr=0.02, embedding_lr=0.02, table_lr=0.04), steps=50,
                shape=TABLES.shape | dict(n_layer=1, n_head=2, d_model=64, d_table=64))
SPRINT = replace(SMALL, name="higher rates, late decay", rates=dict(lr=0.03, embedding_lr=0.04, table_lr=0.04), decay=0.4)
RUNGS = (MODERN, BF16, MUON, FLAT, TABLES, SMALL, SPRINT)
LONG = replace(SPRINT, name="long run", rates=dict(lr=0.01, embedding_lr=0.01, table_lr=0.02), decay=0.6,
               shape=dict(block_size=128, n_layer=2, n_head=2, d_model=128, n_gram=5, n_rows=4352, d_table=32, dropout=0.1,
                          ngram_dropout=0.2))


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    out: str = option(str(RUNS / "speedrun"), "the run directory")
    target: float = option(1.90, "validation loss that ends a sprint, in nats per character")
    ladder: bool = option(True, "run the other rungs after the sprint, too")
    budget: float | None = option(None, "seconds of training of the long run; the sprint when left out")
    steps: int | None = option(None, "optimizer steps unless the target ends a run before; each rung's own when left out")
    batch_size: int | None = option(None, "windows a step; each rung's own when left out")
    n_eval: int = option(20, "evaluations along a run")
    seed: int = option(0, "seed of weights and batches")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("auto", "of the matrix products, from the second rung on", PRECISIONS)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(out=str(RUNS / "speedrun_quick"), steps=6, batch_size=4, n_eval=2)

    def __post_init__(self):
        given = [name for name in ("budget", "steps", "batch_size") if getattr(self, name) is not None]
        check_positive(self, "target", "n_eval", *given)
        if not self.out:
            raise InputError("--out must not be empty")


def train(recipe, config, splits, vocab_size):
    """A run by `recipe`. Returns its evaluations, the losses of the last one (N,), and what it came to, a dict."""
    device = pick_device(config.device)
    dtype = torch.float32 if recipe.precision == "fp32" else pick_precision(config.precision, device)
    recipe = replace(recipe, steps=config.steps or recipe.steps, batch_size=config.batch_size or recipe.batch_size)
    set_seed(config.seed)
    model = NgramGPT(NgramGPTConfig(vocab_size, **recipe.shape)).to(device)
    optimizers = speedrun_optimizers(model, **recipe.rates, optimizer=recipe.optimizer)
    drawing = splits[0], recipe.batch_size, recipe.shape["block_size"], torch.Generator().manual_seed(config.seed)
    batches = shuffled_windows(*drawing) if recipe.windows == "shuffled" else iter(lambda: get_batch(*drawing), None)
    evaluations, step, n_tokens, seconds, progress = [], 0, 0, 0.0, 0.0
    while True:
        if progress * config.n_eval >= len(evaluations) or progress >= 1:
            losses = split_losses(model, splits[1], dtype=dtype)
            loss = losses.double().mean().item()
            merit = dict(name=recipe.name, steps=step, tokens=n_tokens, seconds=seconds, val_loss=loss)
            append_record(config.out, "metrics.jsonl", merit)
            print(LINE.format(**merit))
            evaluations.append(merit)
            reached = config.budget is None and step > 0 and loss <= config.target
            if progress >= 1 or reached:
                merit = merit | dict(seconds_to_target=seconds if reached else None, params=model.n_params())
                return evaluations, losses, merit
        started = time.perf_counter()
        inputs, targets = (part.to(device) for part in next(batches))
        with autocast(device, dtype):
            logits = model(inputs)
        model.zero_grad(set_to_none=True)
        cross_entropy(logits, targets).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * min(1.0, (1 - progress) / recipe.decay)
            optimizer.step()
        synchronize(device)
        seconds += time.perf_counter() - started
        step, n_tokens = step + 1, n_tokens + inputs.numel()
        # A sprint counts steps, so that a seed gives the same run on any machine; a budget is one of time.
        # It is spent when it has no room for one more step.
        progress = step / recipe.steps if config.budget is None else seconds * (step + 1) / step / config.budget


def draw(runs, config):
    """The loss of each run over its seconds; of several runs also a bar each. runs: of `train`."""
    several, last = len(runs) > 1, runs[-1][2]
    fig, axes = plt.subplots(1, 1 + several, squeeze=False, figsize=(10.5, 4.8) if several else None)
    curves, bars = axes[0, 0], axes[0, -1]
    for i, (evaluations, _, result) in enumerate(runs):
        color = plt.get_cmap(SEQUENTIAL)(0.9 * i / len(runs))
        curves.plot(*zip(*((merit["seconds"], merit["val_loss"]) for merit in evaluations[1:])), ".-", color=color)
        if several:
            missed = result["seconds_to_target"] is None
            bars.barh(i, result["seconds"], color=color, alpha=0.4 if missed else 1)
            bars.text(result["seconds"], i, f" {result['seconds']:.3g} s{', missed' if missed else ''}", va="center")
    curves.set(xlabel="training time (seconds)", ylabel="validation loss (nats per character)",
               title=f"{last['params']:,} weights, {last['steps']:,} steps")
    caption = (f"From ln V = {evaluations[0]['val_loss']:.2f} at the start, which is not drawn, to {last['val_loss']:.3f} "
               f"nats a character after {last['seconds']:.2f} s and {last['tokens']:,} characters")
    if config.budget is None:
        curves.axhline(config.target, color=BLACK, linestyle="--")
        caption += f"; dashed: the target, {config.target:g}"
    if several:
        curves.set(xscale="log", title="on the way (time: logarithmic)")
        bars.set(xlabel="training time (seconds)", title=f"to {config.target:g} nats per character")
        bars.set_yticks(range(len(runs)), [result["name"] for _, _, result in runs])
        bars.invert_yaxis()
        bars.grid(False)
        bars.margins(x=0.25)
        caption = ("Right: each rung is the one above it with the idea that it is named after, and rates that suit it. "
                   f"Left: the same runs in the same colours. The last one goes {caption[0].lower()}{caption[1:]}")
    return save_figure(
        fig, figure_path(__file__, "speedrun", config.quick), command=command_line(__file__, config),
        caption=f"{caption}. Each dot is the loss of the whole validation split; the clock stands still meanwhile.",
        title="To the same loss in a fraction of the time" if several else "Loss over the seconds of training")


def main(config):
    dtype = pick_precision(config.precision, pick_device(config.device))
    recipe = SPRINT if config.budget is None else LONG
    text = load_corpus(config.data)
    number = {character: i for i, character in enumerate(sorted(set(text)))}
    splits = split_tokens(torch.tensor([number[character] for character in text]), recipe.shape["block_size"])
    if previous := start_run(config):
        print(f"the run that was in {config.out} is now in {previous}")
    run = evaluations, losses, result = train(recipe, config, splits, len(number))
    summary = {**result, **figures_of_merit(losses, len(text[-len(losses):].encode("utf-8"))),
               "target": config.target if config.budget is None else None, "budget": config.budget, "seed": config.seed,
               "tokens_per_second": result["tokens"] / result["seconds"]}
    write_json(Path(config.out) / "summary.json", summary)
    path = draw([run], config)
    print(json.dumps(summary, indent=2))
    if config.ladder and config.budget is None:
        # A quick run takes the last two rungs. Without bf16 its rung would be the first one again.
        rungs = [rung for rung in RUNGS[-2 if config.quick else 0:-1] if rung != BF16 or dtype == torch.bfloat16]
        runs = [*(train(rung, config, splits, len(number)) for rung in rungs), run]
        summary["ladder"] = [result for _, _, result in runs]
        write_json(Path(config.out) / "summary.json", summary)
        path = draw(runs, config)
        for rung in summary["ladder"]:
            print(LINE.format(**rung), "(missed)" if rung["seconds_to_target"] is None else "")
    print(path)
    return [*evaluations, summary]


if __name__ == "__main__":
    run_script(main, Config, __doc__)
