"""Lesson 0.2 - what is installed here, and how fast is this machine?

Prints the versions and the device, measures matrix products and memory, and draws the roofline: the speed that
arithmetic (flat) and memory (slanted) allow. What to see: large square products reach the flat roof. One token at a
time, a vector times a matrix, is stuck under the slanted one, and faster arithmetic would not help it.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import importlib.metadata
import math
import platform
from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import DEVICES, DTYPES, describe, pick_device, set_seed, supported_precisions
from part_0.plotting import BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_0.roofline import attainable, matmul_speed, matmul_sweep, memory_bandwidth

PACKAGES = ("torch", "numpy", "matplotlib", "tiktoken", "tqdm", "tensorboard")
LOOKS = {"fp32": (BLUE, "o"), "bf16": (ORANGE, "s"), "fp16": (GREEN, "^")}


@dataclass(frozen=True)
class Config:
    seconds: float = option(0.3, "how long to repeat each measurement")
    largest: int = option(8192, "largest matrix tried; a slow machine stops earlier")
    weights_mb: int = option(128, "size of the matrix that meets the single row (MB): more than the caches hold")
    copy_mb: int = option(256, "size of the copied tensor (MB); a sixteenth and a 256th of it are measured too")
    seed: int = option(0, "seed of the matrices")
    device: str = option("auto", "what to measure", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(seconds=0.02, largest=256, weights_mb=8, copy_mb=16)

    def __post_init__(self):
        check_positive(self, "seconds", "weights_mb", "copy_mb")
        if self.largest < 64:
            raise ValueError(f"--largest must be at least 64, not {self.largest}")


def print_versions(device):
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    for name in PACKAGES:
        try:
            print(f"  {name:<12}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name:<12}missing: pip install -r requirements.txt")
    print(f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA")
    print(f"device: {device.type} ({describe(device)}), at full speed in {', '.join(supported_precisions(device))}")


def measure(config, device):
    """Copies {MB: GB/s}, square products {precision: [MatmulSpeed]} and single rows {precision: MatmulSpeed}."""
    squares, rows = {}, {}
    for name, dtype in DTYPES.items():
        if name not in supported_precisions(device):  # emulated, maybe a hundred times slower: the smallest one will do
            squares[name] = [matmul_speed(64, dtype, device, config.seconds)]
            continue
        squares[name] = matmul_sweep(dtype, device, config.seconds, largest=config.largest)
        n = int((config.weights_mb * 1e6 / dtype.itemsize) ** 0.5)
        rows[name] = matmul_speed(n, dtype, device, config.seconds, rows=1)
    megabytes = (config.copy_mb / 256, config.copy_mb / 16, config.copy_mb)
    return {mb: memory_bandwidth(mb, device, config.seconds) for mb in megabytes}, squares, rows


def draw(bandwidth, squares, rows, device):
    """The roofs of a memory of `bandwidth` GB/s and of the fastest product of each precision. Returns the figure."""
    fig, ax = plt.subplots(figsize=(8, 5.5))
    intensities = [2 ** (k / 8) for k in range(-16, 89)]  # 0.25 to 2,048 FLOP/byte
    for name, speeds in squares.items():
        color, marker = LOOKS[name]
        x, y = [speed.intensity for speed in speeds], [speed.gflops for speed in speeds]
        if name not in rows:
            ax.plot(x, y, marker, color=color, markersize=9, label=f"{name}: emulated, only n = 64 measured")
            continue
        ax.plot(intensities, [attainable(i, max(y), bandwidth) for i in intensities], color=color,
                label=f"{name}: roof at {max(y):,.0f} GFLOP/s")
        ax.plot(x, y, marker, color=color, markersize=8)
        ax.plot(rows[name].intensity, rows[name].gflops, marker, color=color, markersize=12, mfc="white", mew=2.5)
    for speed in squares["fp32"]:
        ax.annotate(f"{'n = ' if speed.n == 64 else ''}{speed.n}", (speed.intensity, speed.gflops), (0, -10),
                    textcoords="offset points", va="top", ha="center", color=BLUE)
    ax.annotate("one row times a matrix\n(one token at a time)", (rows["fp32"].intensity, rows["fp32"].gflops),
                (25, -15), textcoords="offset points", va="center", arrowprops=dict(arrowstyle="-"))
    ax.text(0.5, 0.65 * bandwidth, f"memory: {bandwidth:,.0f} GB/s", rotation=math.degrees(math.atan(1.3 * bandwidth)),
            rotation_mode="anchor", transform_rotates_text=True)  # along the slanted roof
    every = [speed.gflops for speeds in (*squares.values(), rows.values()) for speed in speeds]
    ax.set(xscale="log", yscale="log", ylim=(min(every) / 2.5, max(every) * 6), ylabel="speed (GFLOP/s)",
           xlabel="arithmetic intensity (FLOP/byte)", title=describe(device))
    ax.legend(loc="upper left")
    return fig


def main(config):
    """Print versions, measure, draw. Returns what `measure` returns."""
    device = pick_device(config.device)
    set_seed(config.seed)
    print_versions(device)
    copies, squares, rows = measure(config, device)
    for mb, speed in copies.items():
        print(f"copying {mb:g} MB: {speed:,.1f} GB/s")
    for name, speeds in squares.items():
        print(f"{name} square products: " + ", ".join(f"n={s.n} {s.gflops:,.1f}" for s in speeds) + " GFLOP/s"
              + ("" if name in rows else " (not at full speed here: only the smallest is measured)"))
    for name, row in rows.items():
        print(f"{name} one row times {row.n} x {row.n}: {row.gflops:,.1f} GFLOP/s")
    save_figure(draw(copies[config.copy_mb], squares, rows, device), figure_path(__file__, "environment", config.quick),
                title="Roofline: what arithmetic and memory allow", command=command_line(__file__, config),
                caption="Lines are roofs, measured here: flat where arithmetic limits, slanted where memory does. "
                        "Filled marks are square matrix products of growing size n, which reach the flat roof. Open "
                        "marks are one row times a matrix too large for the caches, as when a model writes one token "
                        "at a time: memory holds them down.")
    return copies, squares, rows


if __name__ == "__main__":
    run_script(main, Config, __doc__)
