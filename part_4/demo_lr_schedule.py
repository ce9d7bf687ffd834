"""Lesson 4.3 - what do the learning-rate schedules look like, and what is the warmup for?

Draws the four schedules; then trains a small model at a high learning rate, with and without warmup, from several seeds on
the same batches. AdamW's first steps follow little more than the sign of each gradient, and a warmup keeps them short. What
to see: without it the loss falls faster at first; right, whether it ends higher by more than the seeds differ.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from statistics import mean
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, command_line, option, run_script
from part_0.device import autocast, pick_device, pick_precision, set_seed
from part_0.plotting import BLACK, BLUE, COLORS, ORANGE, band, figure_path, plt, save_figure
from part_2.dataset import get_batch
from part_2.evaluate import windows_loss
from part_2.loss import cross_entropy
from part_3.modern_gpt import ModernGPT
from part_3.side_by_side import ComparisonConfig
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import OPTIMIZERS, build_optimizers, set_learning_rate


@dataclass(frozen=True)
class Config(ComparisonConfig):
    steps: int = option(150, "optimizer steps of each run")
    lr: float = option(0.01, "highest learning rate")
    warmup_steps: int = option(30, "steps of linear warmup, of the runs that have it")
    schedule: str = option("cosine", "what follows the warmup", tuple(SCHEDULES))
    optimizer: str = option("adamw", "of the runs", OPTIMIZERS)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2, warmup_steps=2)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.warmup_steps <= self.steps:
            raise InputError(f"--warmup_steps {self.warmup_steps} must be above 0 and at most --steps {self.steps}")


def train(config, seed, warmup_steps, tokens, device, dtype):
    """One run. Returns the training loss of every step and the validation loss at the end, in nats per byte."""
    train_tokens, val_tokens = tokens
    set_seed(seed)
    model = ModernGPT(config.model_config()).to(device)
    optimizers = build_optimizers(model, config.optimizer, config.lr, 0.99, 0.1)
    batches, losses = torch.Generator().manual_seed(seed), []
    for step in tqdm(range(config.steps), desc=f"warmup {warmup_steps}, seed {seed}", unit="step", disable=None):
        batch = get_batch(train_tokens, config.batch_size, config.block_size, batches)
        inputs, targets = (part.to(device) for part in batch)
        with autocast(device, dtype):
            logits = model(inputs)
        loss = cross_entropy(logits, targets)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        lr = SCHEDULES[config.schedule](step, config.steps, config.lr, config.lr / 10, warmup_steps)
        set_learning_rate(optimizers, lr)
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    val_batch = get_batch(val_tokens, 64, config.block_size, torch.Generator().manual_seed(0))
    return losses, windows_loss(model, *(part.to(device) for part in val_batch), dtype)


def main(config):
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    tokens = config.load_tokens()
    fig, (ax_rate, ax_loss, ax_final) = plt.subplots(1, 3, figsize=(13, 4.4), width_ratios=(3, 3, 2))
    for (name, schedule), color, line in zip(SCHEDULES.items(), COLORS, ("-", "--", "-.", ":")):
        rates = [schedule(step, 1000, 1.0, 0.1, 100) for step in range(1100)]
        ax_rate.plot(rates, color=color, linestyle=line, label=name)
    ax_rate.axvline(1000, color=BLACK, linewidth=1)
    variants = {f"warmup of {config.warmup_steps}": (config.warmup_steps, BLUE, "--"), "no warmup": (0, ORANGE, "-")}
    for row, (name, (warmup_steps, color, line)) in enumerate(variants.items()):
        runs = [train(config, config.seed + i, warmup_steps, tokens, device, dtype) for i in range(config.n_seed)]
        shown = range(min(config.steps, 2 * config.warmup_steps))
        band(ax_loss, shown, [losses[:len(shown)] for losses, _ in runs], color=color, linestyle=line, label=name)
        final = [val_loss for _, val_loss in runs]
        ax_final.plot([row] * len(final), final, "o", color=color)
        ax_final.plot(row, mean(final), "_", color=BLACK, markersize=24, markeredgewidth=2)
        peak = mean(max(losses) for losses, _ in runs)
        print(f"{name:14s} highest training loss {peak:.2f} (mean), final validation loss {mean(final):.3f} nats per byte "
              f"({', '.join(f'{loss:.3f}' for loss in final)})")
    ax_rate.set(xlabel="optimizer step, of 1,000", ylabel="learning rate / highest", title="schedules, warmup of 100")
    ax_rate.legend(loc="lower left", bbox_to_anchor=(0.1, 0.15))
    ax_loss.set(xlabel="optimizer step", ylabel="training loss (nats per byte)", title="the first steps")
    ax_loss.legend()
    ax_final.set(ylabel="validation loss (nats per byte)", title="at the end", xlim=(-0.5, 1.5))
    ax_final.set_xticks(range(2), variants)
    path = save_figure(
        fig, figure_path(__file__, "lr_schedule", config.quick), title="Learning-rate schedules, and the first steps",
        caption="Left: the schedules, with a floor of a tenth; the line is the end of the run. Middle: loss in the first "
                f"steps at a highest rate of {config.lr:g}, {config.n_seed} seeds, mean and range. Right: the validation "
                f"loss after {config.steps} steps, each seed (dots) and the mean (bar).",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
