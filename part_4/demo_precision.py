"""Lesson 4.2 - where does low precision lose, and what mends it?

Two experiments with single numbers, and a small model trained with weights in bf16 and in fp32. What to see: a bf16 weight
of 1 never feels updates of 0.001; a bf16 sum stops growing where its next term is half a step or less; with bf16 weights the
model is a little behind, though both compute in bf16; and part of the gradients lies where fp16 has few bits or none,
until the loss, and with it every gradient, is scaled up.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.device import autocast, pick_device, set_seed
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, band, figure_path, plt, save_figure
from part_2.dataset import get_batch
from part_2.loss import cross_entropy
from part_2.optimization import warmup_cosine
from part_3.modern_gpt import ModernGPT
from part_3.side_by_side import ComparisonConfig
from part_4.optimizer import build_optimizers

# fp16's smallest number above zero: what is less than half of it becomes zero. From 2^-14 on a number has all 11 bits.
SMALLEST = 2.0 ** -24


@dataclass(frozen=True)
class Config(ComparisonConfig):
    steps: int = option(200, "optimizer steps of each run")
    scale: float = option(2.0 ** 16, "the loss scale")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=12, batch_size=2, block_size=16, n_layer=2, d_model=16, n_seed=2)


def running_sum(values, dtype):
    """The sum after each of `values`, every one rounded to `dtype`, kept in `dtype`: a list of floats."""
    total, sums = torch.zeros((), dtype=dtype), []
    for value in values.to(dtype):
        total = total + value
        sums.append(total.item())
    return sums


def train(config, seed, tokens, weight_dtype, device):
    """Train, weights in `weight_dtype`, products in bf16. Returns the loss of every step, and the last gradients (N,)."""
    set_seed(seed)
    model = ModernGPT(config.model_config()).to(device, weight_dtype)
    [optimizer] = build_optimizers(model, "adamw", config.lr, beta2=0.99, weight_decay=0.1)
    batches, losses = torch.Generator().manual_seed(seed), []
    for step in tqdm(range(config.steps), desc=f"{weight_dtype}, seed {seed}", unit="step", disable=None):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, config.steps, config.lr, config.lr / 100, config.steps // 10)
        batch = get_batch(tokens, config.batch_size, config.block_size, batches)
        inputs, targets = (part.to(device) for part in batch)
        with autocast(device, torch.bfloat16):
            logits = model(inputs)
        loss = cross_entropy(logits, targets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        gradients = torch.cat([weight.grad.flatten() for weight in model.parameters()])
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return losses, gradients.float().cpu()


def main(config):
    device = pick_device(config.device)
    tokens, _ = config.load_tokens()
    fig, ((ax_update, ax_sum), (ax_loss, ax_underflow)) = plt.subplots(2, 2, figsize=(11, 8))
    updates, ones = torch.full((100,), 1e-3), torch.ones(600)
    kinds = ((torch.float32, "fp32", BLUE, "-"), (torch.bfloat16, "bf16", ORANGE, "--"))
    for dtype, name, color, line in kinds:
        ax_update.plot(running_sum(torch.cat([torch.ones(1), updates]), dtype), color=color, linestyle=line, label=name)
        ax_sum.plot(running_sum(ones, dtype), color=color, linestyle=line, label=name)
    ax_update.set(xlabel="updates of 0.001", ylabel="weight", title="a weight of 1 and small updates")
    ax_sum.set(xlabel="ones added", ylabel="sum", title="a sum kept in bf16 ends at 256")

    smooth, final = max(1, config.steps // 20), {}
    for dtype, name, color, line in kinds:
        runs = [train(config, config.seed + i, tokens, dtype, device) for i in range(config.n_seed)]
        losses = torch.tensor([losses for losses, _ in runs]).unfold(1, smooth, 1).mean(dim=-1)  # running mean
        late = losses.shape[1] // 5
        band(ax_loss, range(smooth + late, config.steps + 1), losses[:, late:], color=color, linestyle=line,
             label="fp32 weights, autocast" if dtype == torch.float32 else "bf16 weights")
        final[name] = losses[:, -1].tolist()
        if dtype == torch.float32:
            gradients = runs[0][1]
        print(f"{name} weights: loss {sum(final[name]) / config.n_seed:.3f} nats per byte at the end "
              f"({', '.join(f'{loss:.3f}' for loss in final[name])})")
    ax_loss.set(xlabel="optimizer step", ylabel="training loss (nats per byte)", title="the same model, products in bf16")

    sizes = gradients[gradients != 0].abs()
    parts = {"gradients": (sizes, ORANGE), f"times {config.scale:.0f}": (sizes * config.scale, GREEN)}
    zero, fewer = ([(part < limit).float().mean().item() for part, _ in parts.values()]
                   for limit in (SMALLEST / 2, 2 ** -14))
    for name, (part, color) in parts.items():
        ax_underflow.hist(part.log2().numpy(), bins=range(-34, 17), color=color, alpha=0.7, label=name)
    ax_underflow.axvspan(-34, -25, color=BLACK, alpha=0.25, linewidth=0, label="zero in fp16")
    ax_underflow.axvspan(-25, -14, color=BLACK, alpha=0.1, linewidth=0, label="fewer than 11 bits")
    ax_underflow.set(xlabel="size, power of two", ylabel="gradients", yscale="log", title="gradients and the range of fp16",
                     ylim=(None, 100 * len(sizes)))
    ax_underflow.legend(fontsize=10, loc="upper center", ncols=2)
    for ax in (ax_update, ax_sum, ax_loss):
        ax.legend()
    print(f"gradients: in fp16 {zero[0]:.3%} are zero and {fewer[0]:.1%} have less than 11 bits; scaled {zero[1]:.3%} and "
          f"{fewer[1]:.1%}")
    path = save_figure(
        fig, figure_path(__file__, "precision", config.quick), title="Where low precision loses",
        caption="Above: updates of 0.001 do not move a bf16 weight of 1, for the next number is 1 + 1/128; a sum of ones "
                f"stops at 256, where the numbers lie 2 apart. Below left: training loss (running mean over {smooth} steps, "
                f"after the first fifth; {config.n_seed} seeds, mean and range). Below right: the last step's gradients; "
                f"in fp16 {fewer[0]:.1%} have fewer than 11 bits, and {fewer[1]:.1%} once scaled by {config.scale:.0f}.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
