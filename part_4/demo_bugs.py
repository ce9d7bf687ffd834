"""Lesson 4.4 - what does the classic mistake of this part look like?

Trains a small model with part_4/train.py, and then resumes it from a checkpoint in the middle: once rightly, and once with a
schedule that counts its steps from the resumption. What to see: right, nothing, the resumed run is the uninterrupted one bit
for bit; wrong, a second warm-up, a learning rate that is high where it should be low, and a loss that stays behind.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import contextlib
import io
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, RED, figure_path, plt, save_figure
from part_2.corpus import DATA_HELP
from part_4 import train
from part_4.bugs import BUGS
from part_4.checkpoint import checkpoint_files

RIGHT, WRONG = dict(color=BLUE, linestyle="-", label="right"), dict(color=RED, linestyle="--", label="wrong")
[BUG] = BUGS


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    steps: int = option(240, "optimizer steps of the run")
    resume_at: int = option(200, "the checkpoint that the run goes on from")
    warmup_steps: int = option(20, "steps of linear warm-up")
    seed: int = option(1, "seed of weights and batches")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=12, resume_at=8, warmup_steps=3)

    def __post_init__(self):
        check_positive(self, "steps", "warmup_steps")
        if not self.warmup_steps < self.resume_at < self.steps:
            raise InputError(f"--resume_at must be between --warmup_steps {self.warmup_steps} and --steps {self.steps}, not "
                             f"{self.resume_at}")

    def run_config(self, folder):
        """The flags of the run into the directory `folder`/whole, with a checkpoint at `resume_at` that is kept."""
        return train.Config(
            data=self.data, out=str(folder / "whole"), tokens=str(folder / "tokens"), vocab_size=300, steps=self.steps,
            batch_size=8, block_size=64, n_layer=2, n_head=2, d_model=64, warmup_steps=self.warmup_steps,
            eval_every=max(1, self.steps // 12), save_every=self.resume_at, keep_last=self.steps, log_every=1,
            eval_windows=64, eval_tokens=2000, seed=self.seed, device="cpu", precision="fp32")


def run(run_config):
    """The records of a run of part_4/train.py, which talks to nobody."""
    with contextlib.redirect_stdout(io.StringIO()):
        return train.main(run_config)[:-1]


def resume(run_config, name, step):
    """As `run`, from the checkpoint of that step of the finished run, in a copy of its directory."""
    out = Path(run_config.out).with_name(name)
    shutil.copytree(run_config.out, out)
    for path in checkpoint_files(out):
        if int(path.stem[5:]) > step:
            path.unlink()
    return run(replace(run_config, out=str(out), resume="yes"))


def column(records, name):
    """The steps and values at which `name` was logged."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    return [step for step, _ in pairs], [value for _, value in pairs]


def main(config):
    with tempfile.TemporaryDirectory() as folder:
        run_config = config.run_config(Path(folder))
        whole = run(run_config)
        right = resume(run_config, "right", config.resume_at)
        with BUG.installed():
            wrong = resume(run_config, "wrong", config.resume_at)
    final, right_final, wrong_final = (column(records, "val_loss")[1][-1] for records in (whole, right, wrong))
    steps, losses = column([record for record in whole if record["step"] >= config.resume_at], "loss")
    gaps, wrong_gaps = ([loss - other for loss, other in zip(column(records, "loss")[1], losses)]
                        for records in (right, wrong))
    rate, wrong_rate = (column(records, "lr")[1][-1] for records in (right, wrong))
    print(BUG.describe(*(
        f"final validation loss {loss:.3f} nats per token ({loss - final:+.3f} to the uninterrupted run), last learning "
        f"rate {each:.2g}" for loss, each in ((right_final, rate), (wrong_final, wrong_rate)))))
    fig, (ax_rate, ax_loss, ax_gap) = plt.subplots(1, 3, figsize=(13, 4.4))
    for ax, name in ((ax_rate, "lr"), (ax_loss, "val_loss")):
        ax.plot(*column([record for record in whole if record["step"] <= config.resume_at] + right, name), **RIGHT)
        ax.plot(*column(wrong, name), **WRONG)
    ax_gap.plot(steps, gaps, **RIGHT)
    ax_gap.plot(steps, wrong_gaps, **WRONG)
    ax_rate.set(ylabel="learning rate", title=BUG.name)
    ax_loss.set(ylabel="validation loss (nats per token)", title="what it costs")
    ax_gap.set(ylabel="loss - uninterrupted (nats per token)", title="the same batches, step by step")
    for ax in (ax_rate, ax_loss, ax_gap):
        ax.axvline(config.resume_at, color=BLACK, linestyle=":", linewidth=1, label="resumed")
        ax.set_xlabel("optimizer step")
        ax.legend()
    print(save_figure(
        fig, figure_path(__file__, "bugs", config.quick), title="A mistake of Part 4 beside the right run",
        caption=f"A run of {config.steps} steps, resumed from its checkpoint of step {config.resume_at}. Wrong: the "
                "schedule counts from there. Left: learning rate. Middle: validation loss, at the end "
                f"{right_final:.3f} (right) and {wrong_final:.3f}. Right: loss of each batch minus that of the run without "
                f"interruption; right, the largest difference is {max(map(abs, gaps)):g}.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
