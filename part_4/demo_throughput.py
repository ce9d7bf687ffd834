"""Lesson 4.2 - where does a training step's time go, and how far is that from what this machine could do?

Trains a small Llama (6 layers, width 256, 8 query and 4 key-value heads, 6.5 million weights) for a few steps in each
precision, and compares the time of each kind of work with the floor: the step's FLOPs over the speed of the fastest matrix
product. What to see: reduced precision makes the products several times faster and the rest hardly at all, so the rest is
what remains. On a CPU attention is a large part of it with torch's fused kernel, and half as much when it holds its weights.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar
from unittest.mock import patch

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import DEVICES, DTYPES, describe, pick_device, set_seed, supported_precisions
from part_0.plotting import BLACK, COLORS, figure_path, plt, save_figure
from part_0.profiling import by_category, phase, profile_step
from part_0.roofline import matmul_peak
from part_2.optimization import parameter_groups
from part_3 import attention
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.grad_accumulation import accumulate_gradients
from part_4.run_logger import step_flops


@dataclass(frozen=True)
class Config:
    batch_size: int = option(16, "windows a step")
    block_size: int = option(256, "context length in tokens")
    n_micro: int = option(1, "micro-batches a step")
    n_steps: int = option(2, "steps to measure, after one that warms up; the faster counts")
    seed: int = option(1, "seed of weights and tokens")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(batch_size=2, block_size=32, n_steps=1)

    def __post_init__(self):
        check_positive(self, "batch_size", "block_size", "n_micro", "n_steps")
        if self.batch_size % self.n_micro:
            raise ValueError(f"--n_micro {self.n_micro} must divide --batch_size {self.batch_size}")


def profile_training(dtype, device, config, longest_short=attention.SHORT):
    """Milliseconds of a training step by kind of work, and the step's FLOPs. Attention's own products count as attention.

    longest_short: most tokens for which attention holds its weights (lesson 3.4); 0 for torch's fused kernel everywhere.
    """
    set_seed(config.seed)
    model = ModernGPT(ModernGPTConfig(4096, config.block_size, 6, 8, 256, n_kv_head=4, d_hidden=688)).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.1), lr=1e-3, fused=True)
    tokens = torch.randint(4096, (config.batch_size, config.block_size + 1), device=device)

    def step():
        optimizer.zero_grad()
        accumulate_gradients(model, tokens[:, :-1], tokens[:, 1:], config.n_micro, dtype)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with phase("optimizer"):
            optimizer.step()

    with patch.object(attention, "SHORT", longest_short):
        groups = by_category(profile_step(step, device, config.n_steps, warmup=1))
    products = groups["matrix products"]
    groups["attention"] += [row for row in products if "bmm" in row.name]  # one product a head: only attention has those
    groups["matrix products"] = [row for row in products if "bmm" not in row.name]
    spent = {name: sum(row.milliseconds for row in rows) for name, rows in groups.items()}
    return spent, step_flops(model, tokens[:, 1:].numel(), config.block_size)


def main(config):
    device = pick_device(config.device)
    n_tokens = config.batch_size * config.block_size
    fig, ax = plt.subplots(figsize=(11, 4.5))
    found, names = [], supported_precisions(device)
    rows = [(name, DTYPES[name], attention.SHORT) for name in names]
    if device.type == "cpu" and "bf16" in names:
        rows.insert(-1, ("bf16, fused attention", torch.bfloat16, 0))
    peaks = {name: matmul_peak(DTYPES[name], device, 0.1) * 1e9 for name in names}
    for row, (name, dtype, longest_short) in enumerate(rows):
        spent, flops = profile_training(dtype, device, config, longest_short)
        peak = peaks[name.split(",")[0]]
        total, floor = sum(spent.values()), flops / peak * 1e3
        print(f"{name}: {total:.0f} ms a step of {flops / 1e9:.0f} GFLOP, {n_tokens / total * 1e3:,.0f} tokens/s; at the "
              f"peak of {peak / 1e9:,.0f} GFLOP/s it would be {floor:.0f} ms (MFU {floor / total:.0%})")
        print("      " + ", ".join(f"{kind} {milliseconds:.0f}" for kind, milliseconds in spent.items()))
        found.append(f"{n_tokens / total * 1e3:,.0f} tokens/s in {name} ({floor / total:.0%} of the peak's speed)")
        left = 0.0
        for (kind, milliseconds), color in zip(spent.items(), (*COLORS, "0.6")):
            ax.barh(row, milliseconds, left=left, color=color, label=kind if row == 0 else None)
            if milliseconds > 0.06 * total and milliseconds > 0.04 * ax.get_xlim()[1]:
                ax.text(left + milliseconds / 2, row, f"{milliseconds:.0f}", ha="center", va="center")
            left += milliseconds
        ax.plot([floor, floor], [row - 0.45, row + 0.45], color=BLACK, linestyle="--", linewidth=2.5,
                label="all FLOPs at matmul peak" if row == 0 else None)
    ax.set_yticks(range(len(rows)), [name for name, *_ in rows])
    ax.invert_yaxis()
    ax.set(xlabel="milliseconds a step", ylabel="precision")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4)
    print(save_figure(
        fig, figure_path(__file__, "throughput", config.quick),
        title=f"A training step of a small Llama on {describe(device)}",
        caption=f"{n_tokens:,} tokens a step: {', '.join(found)}. Dashed: the time that the step's FLOPs would take at the "
                "speed of the fastest matrix product in that precision. Reduced precision shortens the products; what is "
                "bound by memory stays nearly as it is.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
