"""Lesson 4.2 - what does it cost, and save, to compute one batch in pieces and in half the bits?

Computes the gradient of the same batch in 1, 2, 4 ... micro-batches, in each precision that this device is fast in. What to
see: the bytes kept for the backward pass fall almost in proportion; the gradient stays what it was, up to the precision's
rounding; the time grows little until the pieces are too small to keep the processor busy.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import random
import time
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, DTYPES, pick_device, set_seed, supported_precisions, synchronize
from part_0.plotting import BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.grad_accumulation import accumulate_gradients

STYLES = {"fp32": dict(color=BLUE), "bf16": dict(color=ORANGE, linestyle="--"), "fp16": dict(color=GREEN, linestyle=":")}


@dataclass(frozen=True)
class Config:
    batch_size: int = option(32, "windows in the whole batch, a power of two")
    block_size: int = option(128, "context length in tokens")
    n_layer: int = option(2, "Transformer blocks")
    n_head: int = option(4, "attention heads")
    d_model: int = option(128, "model width")
    n_rounds: int = option(5, "measurements of each combination, taken in turn")
    seed: int = option(1, "seed of weights and tokens")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(batch_size=4, block_size=16, n_layer=1, d_model=16, n_rounds=2)

    def __post_init__(self):
        check_positive(self, "batch_size", "n_rounds")
        if self.batch_size & (self.batch_size - 1):
            raise InputError(f"--batch_size must be a power of two, not {self.batch_size}")
        self.model_config()  # refuses a shape that cannot be built

    def model_config(self):
        return ModernGPTConfig(256, self.block_size, self.n_layer, self.n_head, self.d_model)


def bytes_kept(model, inputs, targets, dtype):
    """Bytes that one forward pass keeps for its backward pass, without the weights themselves; exact on every device."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()  # several saved tensors may be views of one piece of memory
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        accumulate_gradients(model, inputs, targets, 1, dtype)
    return sum(kept.values())


def main(config):
    device = pick_device(config.device)
    set_seed(config.seed)
    model = ModernGPT(config.model_config()).to(device)
    tokens = torch.randint(256, (config.batch_size, config.block_size + 1), device=device)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    numbers = [2 ** i for i in range(config.batch_size.bit_length())]
    cases = [(name, n) for name in supported_precisions(device) for n in numbers]

    def gradient(name, n):
        model.zero_grad(set_to_none=True)
        accumulate_gradients(model, inputs, targets, n, DTYPES[name])
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    exact = gradient("fp32", 1)
    error = {case: ((gradient(*case) - exact).norm() / exact.norm()).item() for case in cases}
    kept = {(name, n): bytes_kept(model, inputs[:len(inputs) // n], targets[:len(inputs) // n], DTYPES[name])
            for name, n in cases}
    seconds = {case: [] for case in cases}
    for _ in tqdm(range(config.n_rounds), unit="round", disable=None):
        for case in random.sample(cases, len(cases)):  # in turn, so that a busy machine slows all alike
            synchronize(device)
            started = time.perf_counter()
            gradient(*case)
            synchronize(device)
            seconds[case].append(time.perf_counter() - started)
    ratio = {case: median(a / b for a, b in zip(seconds[case], seconds["fp32", 1])) for case in cases}

    fig, axes = plt.subplots(1, 3, figsize=(13, 4.3))
    print("precision  micro-batches   kept for backward   time of the batch   distance from the fp32 gradient")
    for name, n in cases:
        print(f"{name:9s}  {n:13d}   {kept[name, n] / 2**20:13.2f} MiB   {ratio[name, n]:17.2f}   {error[name, n]:.1e}")
    for name in supported_precisions(device):
        for ax, values in zip(axes, ({c: b / 2**20 for c, b in kept.items()}, ratio, error)):
            ax.plot(numbers, [values[name, n] or float("nan") for n in numbers], marker="o", label=name, **STYLES[name])
    axes[0].set(ylabel="kept for the backward pass (MiB)", yscale="log", title="memory")
    axes[1].set(ylabel="time / fp32 in one piece", ylim=(0, None), title="time of the whole batch")
    axes[2].set(ylabel="distance / its norm", yscale="log", title="distance from the fp32 gradient")
    for ax in axes:
        ax.set_xscale("log", base=2)
        ax.set(xlabel="micro-batches", xticks=numbers, xticklabels=numbers)
    axes[0].legend()
    saved = kept["fp32", 1] / kept["fp32", numbers[-1]]
    path = save_figure(
        fig, figure_path(__file__, "grad_accumulation", config.quick), title="One batch in pieces",
        caption=f"The gradient of one batch of {config.batch_size} windows of {config.block_size} tokens. Left: memory, in "
                f"fp32 {saved:.0f} times less with {numbers[-1]} micro-batches than with one. Middle: time, median ratio of "
                f"{config.n_rounds} rounds taken in turn. Right: how far the gradient is from that of one piece in fp32.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
