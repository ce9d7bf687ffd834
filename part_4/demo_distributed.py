"""Lesson 4.2 - do several processes learn what one would have learnt?

Trains the same small model with part_4/train.py from one process, from two with DDP and from two with FSDP, all with the
same global batch. What to see: one loss curve; the differences are those of rounding, because sums are taken in another
order. The times say nothing: the processes share one machine and the model is tiny.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_2.corpus import DATA_HELP
from part_2.run_directory import read_records
from part_4.distributed import PARALLEL

TRAINER = str(Path(__file__).resolve().parent / "train.py")


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    n_process: int = option(2, "processes of the parallel runs")
    steps: int = option(25, "optimizer steps")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=5)

    def __post_init__(self):
        check_positive(self, "n_process", "steps")


def run(parallel, config, folder):
    """Train in the directory folder/parallel. Returns its metrics and summary."""
    out = folder / parallel
    sizes = dict(data=config.data, steps=config.steps, batch_size=8 * config.n_process, block_size=64, n_layer=2, n_head=4,
                 d_model=64, vocab_size=512, dropout=0.0, warmup_steps=5, eval_every=config.steps,
                 save_every=config.steps, log_every=1, eval_windows=16, device="cpu", precision="fp32", out=out,
                 optimizer="adamw", lr=0.003, min_lr=0.0001,
                 tokens=folder / "tokens", parallel=parallel)
    launcher = [] if parallel == "none" else ["-m", "torch.distributed.run", "--standalone",
                                              f"--nproc_per_node={config.n_process}"]
    words = [*launcher, TRAINER, *(word for name, value in sizes.items() for word in (f"--{name}", str(value)))]
    result = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if result.returncode:
        raise InputError(f"the run with --parallel {parallel} failed: {result.stderr.strip().splitlines()[-1]}; see all of "
                         f"it: python3 {' '.join(words)}")
    losses = [record["loss"] for record in read_records(out, "metrics.jsonl") if "loss" in record]
    return losses, json.loads((out / "summary.json").read_text(encoding="utf-8"))


def main(config):
    losses, labels = {}, {"none": "1 process", "ddp": f"{config.n_process} processes, DDP",
                          "fsdp": f"{config.n_process} processes, FSDP"}
    with tempfile.TemporaryDirectory() as folder:
        for parallel in tqdm(PARALLEL, unit="run", disable=None):
            losses[parallel], summary = run(parallel, config, Path(folder))
            print(f"{labels[parallel]:20s} final validation loss {summary['val_loss']:.6f} nats per token")

    fig, (ax_loss, ax_apart) = plt.subplots(1, 2, figsize=(11, 4.5))
    for parallel, color, width in (("none", BLUE, 7), ("ddp", ORANGE, 3), ("fsdp", GREEN, 1.2)):
        ax_loss.plot(losses[parallel], color=color, linewidth=width, alpha=0.4 if width > 5 else 1, label=labels[parallel])
    furthest = 0
    for parallel, color, style in (("ddp", ORANGE, "-"), ("fsdp", GREEN, ":")):
        apart = [abs(one - two) for one, two in zip(losses["none"], losses[parallel])]
        furthest = max(furthest, *apart)
        ax_apart.plot([difference or 1e-8 for difference in apart], color=color, linestyle=style, label=labels[parallel])
    if furthest > 1e-3:
        raise InputError(f"the losses are {furthest:.1e} nats apart, which is more than rounding")
    ax_loss.set(xlabel="optimizer step", ylabel="loss of the batch (nats per token)", title="loss")
    ax_apart.set(xlabel="optimizer step", ylabel="difference (nats per token)", yscale="log", ylim=(5e-9, 1),
                 title="difference from 1 process")
    ax_loss.legend()
    ax_apart.legend()
    print(save_figure(
        fig, figure_path(__file__, "distributed", config.quick), title="One batch, shared by several processes",
        caption="Left: the same global batch gives the same loss, whether one process computes it or several share it. "
                f"Right: the losses are never further apart than {furthest:.0e} nats, on an axis that reaches up to 1; "
                "exactly equal ones are drawn at 1e-8. fp32 keeps about seven digits, and the sums are taken in another "
                "order.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
