"""Lesson 9.5 - RL from verifiable rewards: does the policy learn to be right, or only to be sure of what it says?

Trains GRPO with the verifier's yes or no as the reward, on one family of tasks where the fine-tuned model still errs, and
asks both models held-out tasks many times. What to see: how the share of right answers rises while groups whose answers all
fare alike, which teach nothing, become the rule; and pass@k before and after: where a gain at k = 1 has shrunk to nothing,
or to a loss, at k = 16, the policy has become surer and no wiser.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_6.chat_model import load_model
from part_6.metrics import bootstrap_interval
from part_6.sft_config import RUNS as SFT_RUNS
from part_6.task_families import EXACT
from part_6.tasks import make_tasks
from part_8.stages import load_fine_tuned
from part_9.grpo_config import RUNS
from part_9.grpo_config import Config as GRPOConfig
from part_9.pass_at_k import count_right, pass_at_k
from part_9.train_grpo import main as train_grpo


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "policy and reference, a checkpoint of part_6/train_sft.py")
    family: str = option("where", "the family of tasks", tuple(EXACT))
    n_prompts: int = option(2000, "prompts to learn from")
    steps: int = option(40, "steps of training")
    n_tasks: int = option(100, "held-out tasks")
    n_samples: int = option(32, "answers to each: twice the greatest k, for a steady estimate")
    window: int = option(10, "steps whose mean is drawn")
    seed: int = option(1, "seed of prompts, samples and minibatches")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), n_prompts=40, steps=3, n_tasks=4, n_samples=4,
                                 window=1)

    def __post_init__(self):
        check_positive(self, "n_prompts", "n_tasks", "window")
        if self.n_samples < 2:
            raise InputError(f"--n_samples must be at least 2, not {self.n_samples}")
        if self.window > self.steps:
            raise InputError(f"--window {self.window} must not be above --steps {self.steps}")
        run_config(self)


def run_config(config):
    """The flags of the training run: those of --preset verifier but for steps and the family."""
    own = {flag: getattr(config, flag) for flag in ("sft", "n_prompts", "steps", "seed", "device")}
    small = dict(batch_size=16, group_size=4, minibatch_size=8, block_size=12) if config.quick else {}
    return GRPOConfig(**{**GRPOConfig.PRESETS["verifier"], **own, **small, "families": config.family, "n_held_out": 0,
                         "n_tasks": 2 if config.quick else GRPOConfig.n_tasks,
                         "out": str(RUNS / f"{'quick_' if config.quick else ''}rlvr")})


def main(config):
    device = pick_device(config.device)
    before, tokenizer, _ = load_fine_tuned(config.sft, device)
    try:
        tasks = make_tasks("test", config.n_tasks, config.seed, (config.family,), distinct=True)
    except ValueError as error:
        raise InputError(f"--n_tasks {config.n_tasks}: {error}") from None
    flags = run_config(config)
    *records, summary = train_grpo(flags)
    after, _, _ = load_model(f"{flags.out}/best.pt", device)
    sizes = [2**i for i in range(config.n_samples.bit_length() - 1)]  # up to half of the samples
    passes = {name: np.array([[pass_at_k(config.n_samples, c, k) for k in sizes] for c in count_right(
        model, tokenizer, tasks, config.n_samples, flags.block_size, config.seed)])  # (n_tasks, sizes)
        for name, model in (("before", before), ("after", after))}

    print(f"pass@k in percent on {config.n_tasks} held-out tasks of {config.family}, {config.n_samples} samples each "
          f"[95 % interval]\n{'k':>6s}{'before':>24s}{'after':>24s}{'gain':>24s}")
    for i, k in enumerate(sizes):
        columns = [passes["before"][:, i], passes["after"][:, i], passes["after"][:, i] - passes["before"][:, i]]
        print(f"{k:6d}" + "".join(f"{interval(100 * column):>24s}" for column in columns))

    for label, end in ((config.family, f"_{config.family}"), ("mean of all families", "")):
        print(f"greedy, {label}: {100 * summary[f'exact_match_before{end}']:.1f} % before, "
              f"{100 * summary[f'exact_match_after{end}']:.1f} % after")

    fig, axes = plt.subplots(1, 2, figsize=(11, 5))
    ax_run, ax_pass = axes
    steps = np.arange(config.window, len(records) + 1)
    for key, label, color, line in (("score", "right answers", BLUE, "-"), ("spread", "groups with spread", ORANGE, "--")):
        values = 100 * np.array([record[key] for record in records])
        ax_run.plot(np.arange(1, len(records) + 1), values, ".", color=color, alpha=0.4)
        ax_run.plot(steps, np.convolve(values, np.ones(config.window) / config.window, "valid"), color=color, linestyle=line,
                    label=label)
    ax_run.set(xlabel="step", ylabel="share (%)", ylim=(0, 102), title="while training")
    for (name, values), color, line in zip(passes.items(), (BLACK, GREEN), ("--", "-")):
        ax_pass.plot(sizes, 100 * values.mean(0), color=color, linestyle=line, marker="o", label=name)
        low, high = zip(*(bootstrap_interval([column.tolist()]) for column in values.T))
        ax_pass.fill_between(sizes, 100 * np.array(low), 100 * np.array(high), color=color, alpha=0.15, linewidth=0)
    ax_pass.set_xscale("log", base=2)
    ax_pass.set(xticks=sizes, xticklabels=sizes, xlabel="k, answers of which one must be right", ylabel="pass@k (%)",
                title=f"{config.n_tasks} held-out tasks")
    ax_run.legend(loc="center right")
    ax_pass.legend(loc="lower right")
    print(save_figure(
        fig, figure_path(__file__, "rlvr", config.quick), title=f"Right or wrong as the only reward: {config.family}",
        caption=f"Left: of the {flags.batch_size} answers of each step, in groups of {flags.group_size}, the share that is "
                "right, and the share of groups in which not all fare alike, without which there is nothing to learn; dots: "
                f"steps, lines: means of {config.window}. Right: the chance that one of k samples is right, estimated from "
                f"{config.n_samples}, for the fine-tuned model and after {config.steps} steps, with 95 % bootstrap "
                f"intervals over tasks; seed {config.seed}.", command=command_line(__file__, config)))


def interval(values):
    """Mean and 95 % interval of (N,) numbers, as a cell of a table."""
    low, high = bootstrap_interval([values.tolist()])
    return f"{values.mean():.1f} [{low:.1f}, {high:.1f}]"


if __name__ == "__main__":
    run_script(main, Config, __doc__)
