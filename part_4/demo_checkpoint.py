"""Lesson 4.4 - does a run that is killed again and again end where an undisturbed one ends?

Trains a small model twice with part_4/train.py: once in peace, and once with SIGKILL (nothing can be caught, nothing
flushed) at random moments, some of them in the middle of a save, restarted each time with --resume auto. What to see: every
restart throws away the steps since the last checkpoint and does them again, and the losses lie on each other; at the end
every weight is the same bit for bit.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import random
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLUE, ORANGE, RED, figure_path, plt, save_figure
from part_2.checkpoint import load_checkpoint
from part_2.corpus import DATA_HELP
from part_2.run_directory import read_records
from part_4.checkpoint import checkpoint_files

TRAINER = Path(__file__).resolve().parent / "train.py"
KILLED = 1 if sys.platform == "win32" else -9  # the exit code of a process that was killed


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    n_kills: int = option(2, "how often the run is killed")
    n_saves: int = option(1, "how many of these kills come in the middle of a save")
    steps: int = option(60, "optimizer steps of the run")
    seed: int = option(1, "seed of the moments of the kills")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_kills=2, n_saves=1, steps=30)

    def __post_init__(self):
        check_positive(self, "n_kills", "steps")
        if not 0 <= self.n_saves <= self.n_kills:
            raise InputError(f"--n_saves must be from 0 to --n_kills {self.n_kills}, not {self.n_saves}")


def command(config, out, tokens):
    """The command of the small run into the directory `out`."""
    sizes = dict(data=config.data, steps=config.steps, batch_size=8, block_size=64, n_layer=2, n_head=4, d_model=64,
                 dropout=0.1, vocab_size=512, warmup_steps=10, eval_every=40, save_every=5, log_every=1, eval_windows=16,
                 eval_tokens=2000, device="cpu", precision="fp32", out=out, tokens=tokens, resume="auto",
                 optimizer="adamw", lr=0.003, min_lr=0.0001)
    return [sys.executable, str(TRAINER), *(word for name, value in sizes.items() for word in (f"--{name}", str(value)))]


def records(out):
    """What the run has logged so far."""
    return read_records(out, "metrics.jsonl") if (out / "metrics.jsonl").exists() else []


def run_and_kill(start, out, step=None, in_a_save=False):
    """Start the run and kill it when it has logged `step`, or then in its next save; None: let it end.

    start: a function that starts the run and returns a subprocess.Popen, or what has its poll and kill. Returns the
    process's exit code (0 if it has ended before) and what it had logged.
    """
    process = start()
    while process.poll() is None:
        if step is not None and any(record["step"] >= step for record in records(out)):
            if not in_a_save or list(out.glob("step_*.pt.*tmp")):
                process.kill()  # SIGKILL
        time.sleep(0.001)
    return process.poll(), records(out)


def same_weights(first, second):
    """Whether the last checkpoints of two run directories hold the same weights and moments, bit for bit."""
    states = [load_checkpoint(checkpoint_files(out)[0]) for out in (first, second)]
    models, optimizers = ([state[name] for state in states] for name in ("model", "optimizer"))
    moments = [[value for weight in state["state"].values() for value in weight.values()] for state in optimizers]
    return all(torch.equal(models[0][name], models[1][name]) for name in models[0]) and all(map(torch.equal, *moments))


def draw(peaceful, attempts, config):
    fig, (ax_loss, ax_runs) = plt.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2))
    losses = [record for record in peaceful if "loss" in record]
    ax_loss.plot([r["step"] for r in losses], [r["loss"] for r in losses], color=BLUE, linewidth=6, alpha=0.35,
                 label="undisturbed")
    for i, (first, logged, in_a_save) in enumerate(attempts):
        mine = [record for record in logged if "loss" in record and record["step"] >= first]
        ax_loss.plot([r["step"] for r in mine], [r["loss"] for r in mine], color=ORANGE, linewidth=1.2,
                     label="killed and resumed" if i == 0 else None)
        ax_runs.barh(i, len(mine), left=first, color=ORANGE, height=0.6)
        if i < len(attempts) - 1:
            mark = dict(marker="X" if in_a_save else "o", color=RED, markersize=9, linestyle="none")
            ax_loss.plot(mine[-1]["step"], mine[-1]["loss"], **mark)
            ax_runs.plot(mine[-1]["step"] + 1, i, **mark)
    n_saves = sum(in_a_save for *_, in_a_save in attempts[:-1])
    for marker, label in (("o", "killed"), ("X", "killed while saving")):
        ax_loss.plot([], [], marker=marker, color=RED, markersize=9, linestyle="none", label=label)
    ax_loss.set(xlabel="optimizer step", ylabel="loss of the batch (nats per token)", title="loss")
    ax_loss.legend()
    ax_runs.set(xlabel="optimizer step", ylabel="start of the process", title="what each process did")
    ax_runs.set_yticks(range(len(attempts)), [str(i + 1) for i in range(len(attempts))])
    ax_runs.invert_yaxis()
    return save_figure(
        fig, figure_path(__file__, "checkpoint", config.quick), title="Killed, resumed, and none the worse",
        caption=f"Left: the losses of a run that was killed {len(attempts) - 1} times ({n_saves} of them while it wrote a "
                "checkpoint) lie on those of one that was not, dropout and all; its final weights and optimizer moments "
                "are the same bit for bit. Right: each process begins at the last sound checkpoint; where bars overlap, "
                "steps were done twice.", command=command_line(__file__, config))


def main(config):
    folder = Path(tempfile.mkdtemp(prefix="killed_"))
    tokens, peaceful, out = (folder / name for name in ("tokens", "peaceful", "killed"))

    def start(directory):
        return subprocess.Popen(command(config, directory, tokens), stdout=subprocess.DEVNULL)

    chance = random.Random(config.seed)
    steps = sorted(chance.sample(range(2, config.steps - 6), config.n_kills))
    in_a_save = [i < config.n_saves for i in range(config.n_kills)]
    chance.shuffle(in_a_save)
    try:
        attempts, first = [], 0
        bar = tqdm(total=config.n_kills + 2, unit="process", disable=None)
        code, undisturbed = run_and_kill(lambda: start(peaceful), peaceful)
        bar.update()
        for step, saving in [*zip(steps, in_a_save), (None, False)]:
            code, logged = run_and_kill(lambda: start(out), out, step, saving)
            if code not in (0, KILLED):
                raise InputError(f"the run ended with exit code {code}; see what it says: "
                                 f"{' '.join(command(config, out, tokens)[1:])}")
            attempts.append((first, logged, saving))
            saved = [int(path.stem[5:]) for path in checkpoint_files(out)]
            print(f"process {len(attempts)}: from step {first} to {logged[-1]['step']}"
                  + (f", killed{' while saving' if saving else ''}; checkpoints: {saved}" if code else ", the end"))
            first = max(saved, default=0)
            bar.update()
            if code == 0:  # the end, also where a process came there before it could be killed
                break
        bar.close()
        same = same_weights(peaceful, out)
        print(f"killed {len(attempts) - 1} times; final weights and moments bit for bit the same: {same}")
        if not same:
            raise InputError("the run that was killed has other weights than the undisturbed one")
        print(draw(undisturbed, attempts, config))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
