"""Lesson 9.5 - how long does a GRPO step take, and how fast does a reward that anyone can compute rise?

A model of 0.86 million random weights, which knows nothing, gets 8 prompts of 16 random tokens, gives 8 answers of exactly
32 tokens to each, and is paid by the share of one token among them; one update a step without KL penalty, on one thread.
What to see: the reward goes from chance to nearly 1 within 18 steps, and writing the answers, 32 small steps one after the
other, is much further from its floor than learning. The floor: FLOPs at the speed of the fastest matrix product found here.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import describe, set_seed
from part_0.plotting import BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_4.distributed import Process
from part_4.optimizer import build_optimizers
from part_8.demo_rollout_speed import one_thread, product_peak
from part_8.prompts import Prompt
from part_9.group_experience import Groups, ask, make_group_experience
from part_9.grpo_config import Config as GRPOConfig
from part_9.train_grpo import learn

CPU = torch.device("cpu")
PAID = 0  # the token whose share is the reward
PARTS = {"generation": ORANGE, "log-probabilities": GREEN, "learning": BLUE}


@dataclass(frozen=True)
class Config:
    vocab_size: int = option(256, "vocabulary")
    n_layer: int = option(4, "Transformer blocks")
    n_head: int = option(4, "heads")
    d_model: int = option(128, "model width")
    n_groups: int = option(8, "prompts a step")
    group_size: int = option(8, "answers to each")
    n_prompt: int = option(16, "tokens of a prompt")
    n_new: int = option(32, "tokens of an answer")
    steps: int = option(18, "steps")
    lr: float = option(8e-3, "learning rate, constant")
    n_seed: int = option(3, "seeds, i.e. runs")
    seed: int = option(1, "the first seed")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_layer=1, d_model=32, n_new=4, steps=3, n_seed=1)

    def __post_init__(self):
        check_positive(self, "n_groups", "n_prompt", "n_new", "n_seed")
        if self.steps < 2:
            raise InputError(f"--steps must be at least 2, not {self.steps}: the first one warms up")
        self.sizes(), self.grpo(self.seed)

    def sizes(self):
        return ModernGPTConfig(self.vocab_size, self.n_prompt + self.n_new, self.n_layer, self.n_head, self.d_model)

    def grpo(self, seed):
        size = self.n_groups * self.group_size
        return GRPOConfig(batch_size=size, minibatch_size=size, group_size=self.group_size, epochs=1, beta=0.0, lr=self.lr,
                          min_lr=self.lr, steps=self.steps, block_size=self.n_new, seed=seed)


def train(config, seed, bar):
    """A run. Returns the mean reward of each step, (steps,), and the seconds of its PARTS, (steps, 3)."""
    set_seed(seed)
    policy, flags, process = ModernGPT(config.sizes()).eval(), config.grpo(seed), Process()
    optimizers = build_optimizers(policy, "adamw", flags.lr, flags.beta2, flags.weight_decay)
    rewards, seconds = [], []
    for step in range(config.steps):
        prompts = [Prompt([], torch.randint(config.vocab_size, (config.n_prompt,)).tolist(), None)
                   for _ in range(config.n_groups)]
        clock = [time.perf_counter()]
        answers = ask(policy, prompts, config.group_size, config.n_new, (config.vocab_size,), 1.0, [seed % 2**64, step],
                      config.n_groups, process)  # no token has this number: nothing ends an answer
        scores = (torch.tensor(answers) == PAID).float().mean(1)
        clock.append(time.perf_counter())
        groups = Groups([prompt for prompt in prompts for _ in range(config.group_size)], answers, scores, 0, 0, 0)
        experience = make_group_experience(policy, None, groups, flags, config.vocab_size, torch.float32, process)
        clock.append(time.perf_counter())
        learn(policy, optimizers, experience, flags, np.random.default_rng([seed % 2**64, step]), process)
        clock.append(time.perf_counter())
        rewards.append(scores.mean().item())
        seconds.append(np.diff(clock))
        bar.update()
    return np.array(rewards), np.array(seconds)


def floor_seconds(n_weights, config, peak):
    """The least seconds of each of PARTS, (3,). n_weights: of the matrices; peak: GFLOP/s. Attention's own products are left
    out."""
    B, n = config.n_groups * config.group_size, config.n_new
    tokens = np.array([config.n_groups * config.n_prompt + B * (n - 1), *[B * (config.n_prompt + n)] * 2])
    return np.array([2, 2, 6]) * n_weights * tokens / peak / 1e9


def main(config):
    with one_thread(), tqdm(total=config.n_seed * config.steps, unit="step", disable=None) as bar:
        print(describe(CPU))
        runs = [train(config, config.seed + i, bar) for i in range(config.n_seed)]
        peak = product_peak(torch.float32, 0.02 if config.quick else 0.2)
    model = ModernGPT(config.sizes())
    n_weights = sum(part.weight.numel() for part in model.modules() if type(part) is nn.Linear)
    seconds = np.concatenate([own[1:] for _, own in runs])  # the first step of a run warms up
    median = sorted(seconds, key=sum)[len(seconds) // 2]
    floor = floor_seconds(n_weights, config, peak)

    totals = seconds.sum(1)
    print(f"{model.n_params():,} weights; {config.n_groups} prompts of {config.n_prompt} tokens, {config.group_size} "
          f"answers of {config.n_new} each\na step takes {median.sum():.3f} s (median of {len(seconds)}, {totals.min():.3f} "
          f"to {totals.max():.3f}), {median.sum() / floor.sum():.1f} times the floor of {floor.sum():.3f} s at {peak:.0f} "
          f"GFLOP/s\n{'':20s}{'seconds':>9s}{'floor':>9s}{'times':>8s}")
    for name, own, least in zip(PARTS, median, floor):
        print(f"{name:20s}{own:9.3f}{least:9.3f}{own / least:8.1f}")
    curves = np.array([rewards for rewards, _ in runs])
    for rewards in curves:
        print(f"reward {rewards[0]:.3f} in the first step, {rewards[-1]:.3f} in the last")

    fig, axes = plt.subplots(1, 2, figsize=(11, 4.4))
    ax_time, ax_reward = axes
    for y, parts, alpha in ((0, median, 1.0), (1, floor, 0.45)):
        for (name, color), left, width in zip(PARTS.items(), np.cumsum(parts) - parts, parts):
            ax_time.barh(y, width, 0.7, left, color=color, alpha=alpha, label=name if y == 0 else None)
        ax_time.text(parts.sum(), y, f" {parts.sum():.2f} s", va="center")
    ax_time.set(yticks=[0, 1], yticklabels=["a step", "its floor"], xlabel="seconds, one thread",
                xlim=(0, 1.2 * median.sum()), ylim=(2.2, -0.6), title="where the time goes")
    ax_time.grid(axis="y", visible=False)
    ax_time.legend(loc="lower right")
    for rewards, line in zip(curves, ("-", "--", "-.", ":") * len(curves)):
        ax_reward.plot(range(1, config.steps + 1), rewards, color=BLUE, linestyle=line)
    ax_reward.set(xlabel="step", ylabel="reward: share of the token", ylim=(-0.03, 1.03), title=f"{len(curves)} seeds")
    print(save_figure(
        fig, figure_path(__file__, "grpo_speed", config.quick), title=f"A GRPO step, and {config.steps} of them",
        caption=f"{model.n_params():,} random weights, {config.n_groups} prompts of {config.n_prompt} tokens, "
                f"{config.group_size} answers of {config.n_new} tokens to each, one update a step, fp32, one thread. Left: "
                f"the median step, {median.sum():.2f} s, of which generation {median[0]:.2f} s; paler: FLOPs at {peak:.0f} "
                "GFLOP/s, the fastest product found here. Right: the mean reward of each step; chance is "
                f"{1 / config.vocab_size:.3f}, and the last steps reach {curves[:, -1].min():.2f} to "
                f"{curves[:, -1].max():.2f}.", command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
