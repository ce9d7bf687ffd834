"""Lesson 0.2 - where does the time of a training step go, and how much of it is matrix products?

Profiles forward, backward and AdamW of a small Transformer made of torch's own layers (Part 1 builds them by hand).
What to see: matrix products take the largest share, and more of it in the backward pass than in the forward pass. The
dashed line is how long they would take at the speed of this machine's best matrix product. All bars together are
longer, and the ratio of the two is the model FLOPs utilisation (MFU).
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import PRECISIONS, autocast, available_devices, describe, pick_device, pick_precision, set_seed
from part_0.pipeline_costs import training_flops
from part_0.plotting import BLUE, GREEN, ORANGE, PURPLE, figure_path, plt, save_figure
from part_0.profiling import by_category, phase, profile_step
from part_0.roofline import best_seconds, matmul_peak

PHASES = {"forward": BLUE, "backward": ORANGE, "optimizer": GREEN, "": PURPLE}


@dataclass(frozen=True)
class Config:
    batch_size: int = option(16, "sequences a step")
    block_size: int = option(64, "bytes a sequence")
    n_layer: int = option(4, "Transformer layers")
    n_head: int = option(4, "attention heads")
    d_model: int = option(128, "model width")
    steps: int = option(10, "steps under the profiler, of which the fastest is shown")
    seed: int = option(0, "seed of weights and bytes")
    # Not "mps": torch.profiler does not see the kernels of an Apple GPU.
    device: str = option("auto", "where to run; auto is cuda where there is one, else cpu", ("auto", "cpu", "cuda"))
    precision: str = option("fp32", "of the matrix products", PRECISIONS)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(batch_size=2, block_size=16, n_layer=1, d_model=32, steps=2)

    def __post_init__(self):
        check_positive(self, "batch_size", "block_size", "n_layer", "n_head", "d_model", "steps")
        if self.d_model % self.n_head:
            raise InputError(f"--d_model {self.d_model} must be divisible by --n_head {self.n_head}")


def make_step(config, device, dtype):
    """One training step as a function, and N: the number of weights that take part in its matrix products."""
    model = nn.ModuleDict({
        "embedding": nn.Embedding(256, config.d_model),
        "layers": nn.TransformerEncoder(
            nn.TransformerEncoderLayer(config.d_model, config.n_head, 4 * config.d_model, dropout=0.0,
                                       activation="gelu", batch_first=True, norm_first=True),
            config.n_layer, nn.LayerNorm(config.d_model), enable_nested_tensor=False),
        "head": nn.Linear(config.d_model, 256, bias=False)}).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    inputs, targets = torch.randint(256, (2, config.batch_size, config.block_size), device=device)
    mask = nn.Transformer.generate_square_subsequent_mask(config.block_size, device=device)

    def step():
        with phase("forward"), autocast(device, dtype):
            logits = model["head"](model["layers"](model["embedding"](inputs), mask=mask, is_causal=True))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        with phase("backward"):
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
        with phase("optimizer"):
            optimizer.step()

    return step, sum(p.numel() for name, p in model.named_parameters() if p.ndim == 2 and "embedding" not in name)


def draw(groups, floor_ms, config, device):
    """A bar for each category, split by phase, with its most expensive operators. Returns the figure."""
    groups = {name: rows for name, rows in groups.items() if rows}
    fig, ax = plt.subplots(figsize=(8, 5))
    right = 0.0
    for y, (name, rows) in enumerate(groups.items()):
        left = 0.0
        for part, color in PHASES.items():
            width = sum(row.milliseconds for row in rows if row.phase == part)
            ax.barh(y, width, left=left, color=color)
            left += width
        operators = (row.name.removeprefix("aten::").replace("scaled_dot_product_", "").strip("_") for row in rows
                     if row.name.startswith("aten::"))
        top = ", ".join(list(dict.fromkeys(name if len(name) < 20 else name[:18] + "…" for name in operators))[:2])
        label = f"{sum(row.share for row in rows):.0%}  {top}"
        ax.annotate(label, (left, y), (8, 0), textcoords="offset points", va="center", fontsize=11,
                    bbox=dict(facecolor="white", edgecolor="none", pad=1))
        right = max(right, left / (0.94 - 0.016 * len(label)))  # a letter takes up to 1.6 % of the axis
    ax.axvline(floor_ms, color="black", linestyle="--")
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in PHASES.values()]
    handles.append(plt.Line2D([], [], color="black", linestyle="--"))
    fig.legend(handles, [*list(PHASES)[:3], "else", f"6ND at matmul peak: {floor_ms:.3g} ms"], ncols=5,
               loc="outside lower center", columnspacing=1.2)
    ax.set_yticks(range(len(groups)), groups)
    ax.invert_yaxis()
    ax.set(xlabel="self time in one step (ms)", ylabel="kind of operator", xlim=(0, right),
           title=f"{describe(device)}, {config.precision}")
    ax.grid(axis="y", visible=False)
    return fig


def main(config):
    """Profile, print, draw. Returns the rows of the profile."""
    name = ("cuda" if "cuda" in available_devices() else "cpu") if config.device == "auto" else config.device
    device = pick_device(name)
    dtype = pick_precision(config.precision, device)
    set_seed(config.seed)
    step, params = make_step(config, device, dtype)
    rows = profile_step(step, device, config.steps)
    seconds = best_seconds(step, device, 0.05 if config.quick else 1.0)
    peak = matmul_peak(dtype, device, 0.02 if config.quick else 0.2)
    flops = training_flops(params, config.batch_size * config.block_size)
    floor = flops / (peak * 1e9)

    groups = by_category(rows)
    print(f"{'kind of operator':<18}{'ms/step':>9}{'share':>8}   most expensive operators (calls a step)")
    for kind, members in groups.items():
        top = ", ".join(f"{row.name} ({row.calls}, {row.phase})" for row in members[:2])
        milliseconds, share = sum(row.milliseconds for row in members), sum(row.share for row in members)
        print(f"{kind:<18}{milliseconds:>9.2f}{share:>8.1%}   {top}")
    print(f"a step: {sum(row.milliseconds for row in rows):.1f} ms under the profiler, {seconds * 1e3:.1f} ms without, "
          "at best")
    print(f"6ND: {flops / 1e9:.2f} GFLOP, at a matmul peak of {peak:,.0f} GFLOP/s no less than {floor * 1e3:.1f} ms: "
          f"the step reaches {floor / seconds:.0%} of the peak (MFU)")
    save_figure(draw(groups, floor * 1e3, config, device), figure_path(__file__, "profiler", config.quick),
                title="Where the time of a training step goes", command=command_line(__file__, config),
                numbers={"mfu": floor / seconds, "device": device.type},
                caption="Time of one training step of a small Transformer by kind of operator, split into forward, "
                        "backward and optimizer, with the most expensive operators named. The dashed line is how long "
                        "the step's matrix products (6ND FLOPs) would take at this machine's measured peak.")
    return rows


if __name__ == "__main__":
    run_script(main, Config, __doc__)
