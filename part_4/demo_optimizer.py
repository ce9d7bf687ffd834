"""Lesson 4.3 - what does an optimizer that knows matrices gain, by the step and by the second?

Trains the same small model with SGD, AdamW and Muon, from three seeds on the same batches; their steps are taken in turn, so
that a busy machine slows all alike. Each has about the best learning rate of a few that were tried with three blocks. What to
see: how far below the others Muon ends by the step, and whether that is left when its longer steps are counted. Right: why;
the singular values of one matrix of momentum, and of the step that Muon makes of it.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import time
from dataclasses import dataclass
from statistics import mean, median
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import autocast, pick_device, pick_precision, set_seed, synchronize
from part_0.plotting import BLUE, GREEN, ORANGE, band, figure_path, plt, save_figure
from part_2.dataset import get_batch
from part_2.evaluate import windows_loss
from part_2.loss import cross_entropy
from part_2.optimization import warmup_cosine
from part_3.modern_gpt import ModernGPT
from part_3.side_by_side import ComparisonConfig
from part_4.optimizer import build_optimizers, orthogonalise, set_learning_rate

STYLES = {"SGD": dict(color=GREEN, linestyle=":"), "AdamW": dict(color=ORANGE), "Muon": dict(color=BLUE, linestyle="--")}


@dataclass(frozen=True)
class Config(ComparisonConfig):
    steps: int = option(160, "optimizer steps of each run")
    batch_size: int = option(16, "windows a step")
    lr: float = option(4e-3, "AdamW's highest learning rate")
    muon_lr: float = option(1.6e-2, "Muon's")
    sgd_lr: float = option(0.2, "SGD's, with momentum 0.9")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=4, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "muon_lr", "sgd_lr")


def train(config, seed, tokens, device, dtype):
    """A run of each optimizer, in turn. Returns the steps of the evaluations, {name: (losses, seconds of a step)}, Muon."""
    models, optimizers, runs, steps = {}, {}, {name: ([], []) for name in STYLES}, []
    lrs = {"SGD": config.sgd_lr, "AdamW": config.lr, "Muon": config.muon_lr}
    for name in STYLES:
        set_seed(seed)
        model = models[name] = ModernGPT(config.model_config()).to(device)
        optimizers[name] = ([torch.optim.SGD(model.parameters(), momentum=0.9, nesterov=True)] if name == "SGD" else
                            build_optimizers(model, name.lower(), lrs[name], beta2=0.99, weight_decay=0.1))
    val_batch = [part.to(device) for part in get_batch(tokens[1], 64, config.block_size, torch.Generator().manual_seed(0))]
    batches = torch.Generator().manual_seed(seed)
    for step in tqdm(range(config.steps + 1), desc=f"seed {seed}", unit="step", disable=None):
        if step % max(1, config.steps // 10) == 0:
            steps.append(step)
            for name, (losses, _) in runs.items():
                losses.append(windows_loss(models[name], *val_batch, dtype))
        if step == config.steps:
            return steps, runs, optimizers["Muon"][0]
        batch = get_batch(tokens[0], config.batch_size, config.block_size, batches)
        inputs, targets = (part.to(device) for part in batch)
        for name, model in models.items():
            synchronize(device)
            started = time.perf_counter()
            with autocast(device, dtype):
                logits = model(inputs)
            model.zero_grad(set_to_none=True)
            cross_entropy(logits, targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            lr = warmup_cosine(step, config.steps, lrs[name], lrs[name] / 10, config.steps // 10)
            set_learning_rate(optimizers[name], lr)
            for optimizer in optimizers[name]:
                optimizer.step()
            synchronize(device)
            runs[name][1].append(time.perf_counter() - started)


def singular_values(muon):
    """Of the largest matrix of momentum over its norm, and of what Muon makes of it: two (n,) tensors, largest first."""
    momentum = max((state["momentum_buffer"] for state in muon.state.values()), key=torch.numel)
    return [torch.linalg.svdvals(matrix.cpu()) for matrix in (momentum / momentum.norm(), orthogonalise(momentum))]


def main(config):
    device = pick_device(config.device)
    results = [train(config, seed, config.load_tokens(), device, pick_precision(config.precision, device))
               for seed in range(config.seed, config.seed + config.n_seed)]
    fig, axes = plt.subplots(1, 3, figsize=(13, 4.4), width_ratios=(3, 3, 2))
    steps, _, muon = results[-1]
    late = len(steps) // 5  # the steep first fifth would hide the bands
    adamw = median(second for _, runs, _ in results for second in runs["AdamW"][1])
    for name, style in STYLES.items():
        # Neighbours were taken in turn: the ratio of their times holds even where the machine's speed changes.
        ratio = median(a / b for _, runs, _ in results for a, b in zip(runs[name][1], runs["AdamW"][1]))
        losses = [runs[name][0] for _, runs, _ in results]
        for ax, scale in zip(axes, (1, adamw * ratio)):
            band(ax, [step * scale for step in steps[late:]], [loss[late:] for loss in losses], label=name, **style)
        print(f"{name:5s} final loss {mean(loss[-1] for loss in losses):.3f} nats per byte "
              f"({', '.join(f'{loss[-1]:.3f}' for loss in losses)}), a step takes {ratio:.2f} times as long as AdamW's")
    spreads = []
    for values, label, style in zip(singular_values(muon), ("momentum / its norm", "Muon's step"), ("AdamW", "Muon")):
        axes[2].semilogy(range(1, len(values) + 1), values, label=label, **STYLES[style])
        spreads.append((values.max() / values.min()).item())
        print(f"{label}: singular values from {values.min():.4f} to {values.max():.2f}")
    for ax, xlabel, title in zip(axes, ("optimizer step", "training time (s)"), ("by the step", "by the second")):
        ax.set(xlabel=xlabel, ylabel="validation loss (nats per byte)", title=title)
    axes[2].set(xlabel="number, by size", ylabel="singular value", title="one matrix")
    axes[0].legend()
    axes[2].legend(loc="lower left")
    path = save_figure(
        fig, figure_path(__file__, "optimizer", config.quick), title="SGD, AdamW and Muon",
        caption=f"Left and middle: validation loss after the first fifth, {config.n_seed} seeds on the same batches, mean "
                f"and range. A step of Muon takes {ratio:.2f} times as long as AdamW's. Right: the momentum of a weight "
                f"matrix is {spreads[0]:.0f} times as large in its strongest direction as in its weakest, Muon's step "
                f"{spreads[1]:.1f} times.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
