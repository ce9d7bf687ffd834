"""Lesson 8.5 - what happens to a policy that is paid by a reward model and by nothing else?

Trains two policies without a KL penalty: one is paid by a weak reward model, made here from some hundred pairs, the other by
that of part_7/train_reward_model.py, from thousands. As the annotator's utility is known here, the truth stands beside what
the reward model says, and best-of-n, which cannot leave what the fine-tuned model would say, beside both. What to see: how
far score and utility rise together, where they part, and what the texts are then. A minute or two on one core; the runs stay
in part_8/runs, and their policies can be asked: python3 part_6/chat.py --checkpoint part_8/runs/free_weak/best.pt
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import contextlib
import dataclasses
import io
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLACK, BLUE, ORANGE, RED, figure_path, plt, save_figure
from part_2.run_directory import read_records
from part_4.bpe_training import in_processes
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.reward_config import RUNS as REWARD_RUNS
from part_7.reward_config import Config as RewardConfig
from part_7.reward_figures import sample_stories, score_stories
from part_7.reward_model import load_reward_model
from part_7.sanity_checks import best_of_n, best_of_n_kl, rank_correlation
from part_7.train_reward_model import main as train_reward_model
from part_8.ppo_config import RUNS
from part_8.ppo_config import Config as PPOConfig
from part_8.stages import load_fine_tuned
from part_8.train_ppo import main as train_ppo

STYLES = {"weak": (ORANGE, "--"), "strong": (BLACK, "-")}


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "policy and reference, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "the strong one, a checkpoint of part_7/train_reward_model.py")
    n_stories: int = option(14, "story prompts whose pairs the weak one learns from")
    n_exact: int = option(14, "tasks of the other families, likewise")
    reward_steps: int = option(60, "optimizer steps of the weak one")
    steps: int = option(60, "steps of each policy")
    batch_size: int = option(32, "answers a step")
    minibatch_size: int = option(16, "answers an update")
    lr: float = option(6e-4, "highest learning rate of the policies")
    n_prompts: int = option(40, "held-out prompts of best-of-n")
    n_samples: int = option(64, "samples for each of them: the greatest n")
    n_texts: int = option(6, "samples of each run that are printed")
    seed: int = option(1, "seed of pairs, prompts and samples")
    n_process: int = option(2, "runs side by side, each in a process with one thread")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), n_stories=6, n_exact=7, reward_steps=4, steps=4,
                                 reward_model=str(REWARD_RUNS / "quick" / "best.pt"), batch_size=8, minibatch_size=4,
                                 n_prompts=4, n_samples=4, n_texts=2, n_process=1)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "n_prompts", "n_texts", "n_process")
        for name, least in (("n_samples", 2), ("n_stories", 4)):  # fewer stories make too few pairs for a batch
            if getattr(self, name) < least:
                raise InputError(f"--{name} must be at least {least}, not {getattr(self, name)}")
        reward_run(self)
        policy_run(self, ("weak", ""))


def reward_run(config):
    """The flags of the weak reward model's training."""
    return RewardConfig(sft=config.sft, n_stories=config.n_stories, n_exact=config.n_exact, n_test=config.n_stories,
                        steps=config.reward_steps, batch_size=16, warmup_steps=config.reward_steps // 10,
                        eval_every=config.reward_steps, save_every=config.reward_steps, seed=config.seed,
                        out=str(RUNS / f"{'quick_' if config.quick else ''}weak_reward"), device=config.device)


def policy_run(config, job):
    """The flags of a policy's training. job: (name, checkpoint of the reward model)."""
    name, reward_model = job
    return PPOConfig(sft=config.sft, reward_model=reward_model, n_prompts=min(4000, config.steps * config.batch_size),
                     out=str(RUNS / f"{'quick_' if config.quick else ''}free_{name}"), steps=config.steps, beta=0.0,
                     batch_size=config.batch_size, minibatch_size=config.minibatch_size, kl_stop=0.0, lr=config.lr,
                     min_lr=config.lr / 6, value_warmup=min(3, config.steps - 1), save_every=config.steps, n_held_out=0,
                     n_tasks=0, seed=config.seed, device=config.device)


@contextlib.contextmanager
def silence():
    """Without the trainers' own messages."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def make_weak(config):
    """Train the weak reward model, unless a run with the same flags is there already. Returns its checkpoint."""
    flags, out = reward_run(config), Path(reward_run(config).out)
    is_there = (out / "summary.json").is_file() and (
        json.loads((out / "config.json").read_text(encoding="utf-8")) == dataclasses.asdict(flags)
        and (out / "summary.json").stat().st_mtime > Path(config.sft).stat().st_mtime)
    if not is_there:
        with silence():
            train_reward_model(flags)
    return str(out / "best.pt")


def train_policy(config, job):
    """A run; job: (name, checkpoint of the reward model). Returns its records, a dict a step, each with its sample."""
    torch.set_num_threads(1)
    flags = policy_run(config, job)
    with silence():
        *records, _ = train_ppo(flags)
    samples = {sample["step"]: sample["text"] for sample in read_records(flags.out, "samples.jsonl")}
    return [record | {"text": samples[record["step"]]} for record in records]


def draw_run(ax, records, best):
    """Score and utility over the divergence, of a run and of best-of-n. best: a list of (n, score, utility)."""
    kl = [max(0.0, record["kl"]) for record in records]  # an estimate, which may be a little below 0 at first
    for i, (figure, color, marker, label) in enumerate((("score", RED, "^", "score"), ("gold", BLUE, "o", "gold utility"))):
        values = [record[figure] for record in records]
        ax.plot(kl, values, color=color, linewidth=0.8, alpha=0.4)
        ax.plot(kl, values, marker, color=color, markersize=4.5, label=label)
        ax.plot([best_of_n_kl(row[0]) for row in best], [row[i + 1] for row in best], color=color, marker=marker,
                linestyle=":", linewidth=1.2, markersize=8, markerfacecolor="none", label=f"{label}, best of n")
    ax.set_xscale("function", functions=(lambda x: np.sqrt(np.maximum(x, 0)), np.square))
    ax.set(xlabel="KL from the reference (nats an answer)", ylabel="mean of a step's answers", xlim=(0, None))


def along(records, n):
    """`n` records from the first to the last."""
    return [records[i] for i in np.linspace(0, len(records) - 1, n).round().astype(int)]


def print_run(name, records, best, spearman, n_texts):
    """All that is drawn of a run, as a table, and some of what it wrote."""
    print(f"\n{name} reward model: Spearman's correlation of score and utility {spearman:.3f}, first model's stories\n"
          f"{'best of n':>9s}{'KL, nats':>10s}{'score':>8s}{'utility':>9s}")
    for n, score, gold in best:
        print(f"{n:9d}{best_of_n_kl(n):10.2f}{score:8.2f}{gold:9.2f}")
    print(f"{'step':>9s}{'KL, nats':>10s}{'score':>8s}{'utility':>9s}{'entropy':>9s}   the first of its answers")
    for record in along(records, n_texts):
        print(f"{record['step'] + 1:9d}{record['kl']:10.2f}{record['score']:8.2f}{record['gold']:9.2f}"
              f"{record['entropy']:9.2f}   {story(record)}")
    top = max(records, key=lambda record: record["gold"])
    print(f"most utility: {top['gold']:.2f} at step {top['step'] + 1}, KL {top['kl']:.2f}")


def story(record):
    """The sample of a step without what all prompts begin with, at most 120 characters; unusual ones escaped."""
    text = ascii(record["text"].removeprefix("Tell a story. "))[1:-1]
    return text if len(text) <= 120 else f"{text[:120]} ..."


def main(config):
    device = pick_device(config.device)
    policy, tokenizer, _ = load_fine_tuned(config.sft, device)
    load_reward_model(config.reward_model, device)  # or refuse, before the work begins
    checkpoints = {"weak": make_weak(config), "strong": config.reward_model}
    with open(Path(checkpoints["weak"]).with_name("train_pairs.jsonl"), encoding="utf-8") as file:
        n_pairs = sum(1 for _ in file)
    tasks, responses, utilities = sample_stories(policy, tokenizer, config.n_prompts, config.n_samples, config.seed)
    runs = dict(zip(checkpoints, in_processes(partial(train_policy, config), list(checkpoints.items()), config.n_process)))

    fig, panels = plt.subplot_mosaic([["weak", "strong", "entropy"], ["texts"] * 3], figsize=(12.6, 6.5),
                                     height_ratios=(3, 1), width_ratios=(4, 4, 3))
    sizes = [2**i for i in range(config.n_samples.bit_length()) if 2**i < config.n_samples] + [config.n_samples]
    for name, records in runs.items():
        rewards = score_stories(load_reward_model(checkpoints[name], device)[0], tokenizer, tasks, responses)
        best = [(n, *(best_of_n(rewards, of, n).mean().item() for of in (rewards, utilities))) for n in sizes]
        print_run(name, records, best, rank_correlation(rewards.flatten(), utilities.flatten()), config.n_texts)
        draw_run(panels[name], records, best)
        panels[name].set_title(f"{name} reward model" + f" ({n_pairs} pairs)" * (name == "weak"))
        color, line = STYLES[name]
        panels["entropy"].plot(np.arange(1, config.steps + 1), [record["entropy"] for record in records], color=color,
                               linestyle=line, label=name)
    low, high = zip(*(panels[name].get_ylim() for name in runs))
    for name in runs:
        panels[name].set_ylim(min(low), max(high))
    panels["strong"].legend(loc="lower left")
    panels["entropy"].set(xlabel="step", ylabel="entropy (nats a token)", ylim=(0, None), title="how much is still tried")
    panels["entropy"].legend()
    panels["texts"].axis("off")
    shown = [("weak", record) for record in along(runs["weak"], 4)] + [("strong", runs["strong"][-1])]
    lines = [f"{name}, step {record['step'] + 1}, utility {record['gold']:.1f}:   {story(record)}" for name, record in shown]
    panels["texts"].text(0, 1, "\n".join(lines), va="top", fontsize=11, linespacing=1.5, parse_math=False)
    print(save_figure(
        fig, figure_path(__file__, "over_optimisation", config.quick), title="Paid by a reward model and nothing else",
        caption=f"Two policies without a KL penalty, {config.steps} steps of {config.batch_size} answers; each point is a "
                "step: what the reward model says of its answers, and their gold utility, over the divergence from the "
                "fine-tuned model, on an axis of square roots. Hollow: the best of n = 1 to "
                f"{config.n_samples} of the fine-tuned model's samples, {config.n_prompts} held-out prompts. Left: paid by "
                f"a reward model made from {n_pairs} pairs; middle: by the strong one. Right: entropy of both policies. "
                "Bottom: the first answer of some steps, and the mean utility of the step.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
