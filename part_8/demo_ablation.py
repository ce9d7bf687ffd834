"""Lesson 8.5 - PPO comes with many details: what does each of them buy, on this task?

Trains the same small, short run with all details and without one of them at a time, from three seeds; prompts and first
answers are the same for all variants of a seed. What to see: which curves leave the band of the run with all details, and
which do not: where bands overlap, these runs do not tell the variants apart. And what the gain costs: bottom right, a policy
without the KL penalty goes further from the reference. Some minutes on one core: there are eighteen runs. Each leaves its
directory in part_8/runs, with curves and a policy to chat with, but without the optimizer's state.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import contextlib
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, band, figure_path, plt, save_figure
from part_4.bpe_training import in_processes
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.reward_config import RUNS as REWARD_RUNS
from part_7.reward_model import load_reward_model
from part_8.ppo_config import RUNS
from part_8.ppo_config import Config as PPOConfig
from part_8.stages import load_fine_tuned
from part_8.train_ppo import main as train_ppo

VARIANTS = {"all details": {}, "no KL penalty": {"beta": 0.0}, "no reward whitening": {"whiten_rewards": False},
            "no advantage whitening": {"whiten_advantages": False}, "no value warm-up": {"value_warmup": 0},
            "one epoch": {"epochs": 1}}
STYLES = dict(zip(VARIANTS, ((BLACK, "o"), (RED, "X"), (BLUE, "^"), (GREEN, "v"), (PURPLE, "s"), (ORANGE, "D"))))


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "policy and reference, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "the reward, a checkpoint of part_7/train_reward_model.py")
    steps: int = option(15, "steps of each run")
    batch_size: int = option(32, "answers a step")
    minibatch_size: int = option(16, "answers an update")
    lr: float = option(4e-4, "highest learning rate of the policy")
    beta: float = option(0.1, "weight of the KL penalty, where there is one")
    value_warmup: int = option(2, "first steps, in which the critic alone learns, where it does")
    last: int = option(4, "last steps, of which the mean counts as the end")
    n_seed: int = option(3, "seeds, i.e. runs of each variant")
    seed: int = option(1, "the first seed")
    n_process: int = option(2, "runs side by side, each in a process with one thread")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), steps=3, batch_size=8, minibatch_size=4,
                                 reward_model=str(REWARD_RUNS / "quick" / "best.pt"), value_warmup=1, last=2, n_seed=1,
                                 n_process=1)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "last", "n_seed", "n_process", "beta")
        if self.last > self.steps:
            raise InputError(f"--last {self.last} must be at most --steps {self.steps}")
        run_config(self, ("all details", self.seed))


def run_config(config, job):
    """The flags of a run. job: (variant's name, seed)."""
    name, seed = job
    own = ("sft", "reward_model", "steps", "batch_size", "minibatch_size", "lr", "beta", "value_warmup", "device")
    out = RUNS / f"{'quick_' if config.quick else ''}ablation_{name.replace(' ', '_')}_{seed}"
    flags = {flag: getattr(config, flag) for flag in own} | VARIANTS[name]
    return PPOConfig(**flags, n_prompts=config.steps * config.batch_size, min_lr=config.lr / 10, n_held_out=0, n_tasks=0,
                     save_every=config.steps, out=str(out), seed=seed)


def run_variant(config, job):
    """A run; job: (variant's name, seed). Returns its records, a dict a step."""
    torch.set_num_threads(1)
    flags = run_config(config, job)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # several talk at once
        *records, _ = train_ppo(flags)
    for path in Path(flags.out).glob("step_*.pt"):  # most of a run's size, for going on, which nobody will
        path.unlink()
    return records


def describe(x, form="6.2f"):
    """Mean, and lowest to highest, of a number for each seed."""
    return f"{np.mean(x):{form}} ({np.min(x):{form}} to {np.max(x):{form}})"


def main(config):
    load_fine_tuned(config.sft)
    load_reward_model(config.reward_model, pick_device(config.device))  # or refuse, before a process is started
    seeds = range(config.seed, config.seed + config.n_seed)
    jobs = [(name, seed) for name in VARIANTS for seed in seeds]
    runs = list(tqdm(in_processes(partial(run_variant, config), jobs, config.n_process), total=len(jobs), unit="run",
                     disable=None))
    figures = {name: {figure: np.array([[record[figure] for record in run] for run in own])
                      for figure in ("gold", "kl", "entropy")}  # (n_seed, steps) each
               for name, own in zip(VARIANTS, zip(*[iter(runs)] * config.n_seed))}
    ends = {name: {figure: own[:, -config.last:].mean(1) for figure, own in table.items()}
            for name, table in figures.items()}

    full = ends["all details"]
    print(f"mean of the last {config.last} of {config.steps} steps, over {config.n_seed} seeds (lowest to highest)\n{'':24s}"
          f"{'gold utility':>24s}{'less that of all details':>26s}{'KL, nats an answer':>24s}{'entropy, nats':>24s}")
    for name, end in ends.items():
        columns = [describe(end["gold"]), describe(end["gold"] - full["gold"], "+6.2f"), describe(end["kl"]),
                   describe(end["entropy"])]
        print(f"{name:24s}" + "".join(f"{column:>{width}s}" for column, width in zip(columns, (24, 26, 24, 24))))

    fig, axes = plt.subplots(2, 3, figsize=(11, 6.7))
    *panels, ax_end = axes.flat
    steps, limits = np.arange(1, config.steps + 1), [table["gold"] for table in figures.values()]
    for ax, name in zip(panels, list(VARIANTS)[1:]):
        band(ax, steps, figures["all details"]["gold"], color=BLACK, linestyle="--", label="all details")
        band(ax, steps, figures[name]["gold"], color=STYLES[name][0], label=name)
        ax.set(title=name, xlabel="step", ylabel="gold utility", ylim=(np.min(limits) - 0.1, np.max(limits) + 0.1))
        ax.legend(loc="lower right")
    for name, end in ends.items():
        color, marker = STYLES[name]
        ax_end.plot(end["kl"], end["gold"], marker, color=color, markersize=8, alpha=0.8, label=name)
    ax_end.set(xlabel="KL (nats an answer)", ylabel="gold utility", title=f"the last {config.last} steps")
    low, high = ax_end.get_ylim()
    ax_end.set_ylim(low - 0.8 * (high - low), high)  # room for the legend, in a frame, or its markers look like runs
    ax_end.legend(fontsize=9, loc="lower right", frameon=True)
    print(save_figure(
        fig, figure_path(__file__, "ablation", config.quick), title="PPO, with one of its details left out",
        caption=f"Gold utility of the {config.batch_size} answers of each step, {config.n_seed} seeds: mean, and band from "
                "lowest to highest. Dashed: the run with all details; coloured: the same, but for what the title says. "
                f"Bottom right: each run's mean over its last {config.last} steps, against the divergence from the "
                "fine-tuned model. Where bands overlap, these runs do not tell the variants apart.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
