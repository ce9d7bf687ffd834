"""Lesson 4.2 - which presets fit on one GPU, which need eight, which need many machines, and for how long?

Nothing is trained here: memory and days are calculated, for GPUs with 80 GB and the speed of an H100. What to see: on one
GPU the state of 16 bytes a weight is what is too large for big models; spread over eight or sixty-four with FSDP it shrinks
in proportion, and activations and logits, which belong to each GPU's own micro-batch, remain.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, SKY, figure_path, plt, save_figure
from part_3.modern_gpt import ModernGPT
from part_4.run_logger import step_flops
from part_4.scaling_costs import GPU_BYTES, training_days, training_memory
from part_4.run_config import PRESETS
from part_4.run_config import Config as TrainConfig

PLANS = {"gpt2-124m": (1, 8), "llama-1b": (1, 8, 64), "llama-8b": (1, 8, 64)}  # preset: numbers of GPUs


@dataclass(frozen=True)
class Config:
    mfu: float = option(0.4, "the share of the GPUs' peak that is assumed to be used")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = {}

    def __post_init__(self):
        if not 0 < self.mfu <= 1:
            raise InputError(f"--mfu must be above 0 and at most 1, not {self.mfu}")


def main(config):
    fig, ax = plt.subplots(figsize=(11, 5))
    labels, y = [], 0
    for preset, numbers in PLANS.items():
        run = TrainConfig(**PRESETS[preset], preset=preset)
        shape = run.model_config(run.vocab_size)
        with torch.device("meta"):  # shapes alone, no memory
            model = ModernGPT(shape)
        tokens = run.batch_size * run.block_size
        flops = step_flops(model, tokens, run.block_size) * run.steps
        print(f"{preset}: {model.n_params() / 1e9:.2f} billion weights, {tokens * run.steps / 1e9:,.0f} billion "
              f"tokens, {flops:.1e} FLOPs")
        for n_gpu in numbers:
            memory = training_memory(shape, model.n_params(), n_gpu, n_gpu > 1, run.micro_batch_size,
                                     run.activation_checkpointing)
            days = training_days(flops, n_gpu, config.mfu)
            fits = "fits" if sum(memory) < GPU_BYTES else "does not fit"
            duration = f"{days:,.0f} days" if days >= 3 else f"{24 * days:.1f} hours"
            parts = " + ".join(f"{n_bytes / 1e9:.1f} GB {name}" for name, n_bytes in memory._asdict().items())
            print(f"  {n_gpu:3d} GPU{'s' if n_gpu > 1 else ''}: {parts} a GPU, {fits}; {duration}")
            left = 0.0
            for (name, n_bytes), color in zip(memory._asdict().items(), (BLUE, SKY, ORANGE, GREEN)):
                ax.barh(y, n_bytes / 1e9, left=left, color=color, label=name if y == 0 else None)
                left += n_bytes / 1e9
            ax.annotate(f"{left:.0f} GB, {duration}", (left, y), (6, 0), textcoords="offset points", va="center",
                        fontsize=11)
            labels.append(f"{preset}, {n_gpu} GPU{'s' if n_gpu > 1 else ''}")
            y += 1
    ax.axvline(GPU_BYTES / 1e9, color=BLACK, linestyle="--", label="80 GB")
    ax.set_yticks(range(y), labels)
    ax.invert_yaxis()
    ax.set(xlabel="memory of each GPU (GB)", ylabel="preset and number of GPUs", xlim=(0, 185))
    ax.legend(loc="upper right")
    print(save_figure(
        fig, figure_path(__file__, "scaling", config.quick), title="What the presets need (calculated, not run)",
        caption="Memory of each GPU, with the state of the model shared out over the GPUs (FSDP) where there are several, "
                f"and how long the preset's run takes at {config.mfu:.0%} of an H100's bf16 peak. A bar beyond the dashed "
                "line does not fit. More GPUs shrink the state, not what belongs to a GPU's own micro-batch.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
