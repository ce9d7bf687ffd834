"""Lesson 4.3 - which learning rate? The range test: one short run in which it grows from far too small to far too large.

(Smith 2017, "Cyclical Learning Rates for Training Neural Networks", section 3.3.) The rate grows by the same factor every
step. What to see: first nothing happens, then the loss falls, then it stops falling and the run diverges. The rate of the
steepest descent works for a start; the one at which the loss turns up is a bound. It is a rough guide, for the run is short
and each rate finds the model that the rates before it have left.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import autocast, pick_device, pick_precision, set_seed
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_2.dataset import get_batch
from part_2.loss import cross_entropy
from part_3.modern_gpt import ModernGPT
from part_3.side_by_side import ComparisonConfig
from part_4.optimizer import build_optimizers, set_learning_rate


@dataclass(frozen=True)
class Config(ComparisonConfig):
    steps: int = option(300, "optimizer steps, one for each learning rate")
    batch_size: int = option(16, "windows a step")
    lowest: float = option(1e-5, "the first learning rate")
    lr: float = option(1.0, "the last one")
    smoothing: float = option(0.9, "weight of the past in the running mean of the loss")
    n_seed: int = option(1, "seeds, i.e. runs of each optimizer")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=20, batch_size=2, block_size=16, n_layer=2, d_model=16)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "lowest")
        if self.lowest >= self.lr or self.steps < 3:
            raise InputError(f"the rate must grow, in 3 steps or more: --lowest {self.lowest} --lr {self.lr} "
                             f"--steps {self.steps}")
        if not 0 <= self.smoothing < 1:
            raise InputError(f"--smoothing must be in [0, 1), not {self.smoothing}")


def range_test(config, name, seed, tokens, rates, device, dtype):
    """Train with one learning rate a step. Returns the running mean of the loss before each step, a list."""
    set_seed(seed)
    model = ModernGPT(config.model_config()).to(device)
    optimizers = build_optimizers(model, name, config.lowest, 0.99, 0.1)
    batches, smooth, curve = torch.Generator().manual_seed(seed), 0.0, []
    for t, lr in enumerate(tqdm(rates, desc=f"{name}, seed {seed}", unit="step", disable=None), start=1):
        inputs, targets = (part.to(device) for part in get_batch(tokens, config.batch_size, config.block_size, batches))
        with autocast(device, dtype):
            logits = model(inputs)
        loss = cross_entropy(logits, targets)
        smooth = config.smoothing * smooth + (1 - config.smoothing) * loss.item()
        curve.append(smooth / (1 - config.smoothing ** t))  # it began at zero: corrected as Adam corrects its averages
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_learning_rate(optimizers, lr)
        for optimizer in optimizers:
            optimizer.step()
    return curve


def steepest_and_lowest(curve):
    """Indices of a loss curve: where it falls fastest, as seen over a tenth of its length, and where it is lowest."""
    lowest = min(range(len(curve)), key=curve.__getitem__)
    reach = max(1, len(curve) // 20)
    inner = range(reach, max(reach + 1, lowest - reach))
    return min(inner, key=lambda i: curve[min(i + reach, len(curve) - 1)] - curve[i - reach]), lowest


def main(config):
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    tokens, _ = config.load_tokens()
    rates = [config.lowest * (config.lr / config.lowest) ** (i / (config.steps - 1)) for i in range(config.steps)]
    fig, ax = plt.subplots()
    found = {}
    for name, label, color, line in (("adamw", "AdamW", ORANGE, "-"), ("muon", "Muon", BLUE, "--")):
        curves = torch.tensor([range_test(config, name, config.seed + i, tokens, rates, device, dtype)
                               for i in range(config.n_seed)])
        curve = curves.mean(dim=0).tolist()
        ax.plot(rates, curve, color=color, linestyle=line, label=label)
        steepest, lowest = steepest_and_lowest(curve)
        ax.plot(rates[steepest], curve[steepest], "v", color=color, markersize=11, label=f"steepest: {rates[steepest]:.1e}")
        ax.plot(rates[lowest], curve[lowest], "s", color=color, markersize=9, label=f"lowest: {rates[lowest]:.1e}")
        found[label] = rates[steepest], rates[lowest]
        print(f"{label:6s} loss falls fastest at a learning rate of {rates[steepest]:.1e}; it is lowest at "
              f"{rates[lowest]:.1e}, {curve[lowest]:.2f} nats per byte")
    ax.set(xscale="log", xlabel="learning rate of the step", ylabel="training loss, running mean (nats per byte)",
           ylim=(None, 1.6 * curve[0]))  # room for the legend; a loss beyond has diverged
    ax.legend(ncols=2, loc="upper center")
    path = save_figure(
        fig, figure_path(__file__, "lr_range_test", config.quick), title="Learning-rate range test",
        caption="One run of each optimizer, in which the learning rate grows by the same factor every step. " + " ".join(
                f"{label}'s loss falls fastest at {steepest:.1e} and is lowest at {lowest:.1e}."
                for label, (steepest, lowest) in found.items()),
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
