"""Lesson 9.5 - PPO, GRPO, Dr. GRPO and best-of-n: what does the same reward model buy with each of them, and at what price?

Trains all three from the same fine-tuned model with the same reward, one after the other, with the trainers' defaults but
for the number of steps, answers and prompts, and counts the tokens they generate. GRPO here: advantages divided by the
group's spread, averaged over tokens; Dr. GRPO: not divided, and a constant length to average over. Best-of-n trains nothing,
and pays whenever it is asked. What to see: utility against the divergence that it costs, against tokens and against time;
and what must be held in memory: GRPO has no critic.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import contextlib
import io
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, figure_path, plt, save_figure
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.reward_config import RUNS as REWARD_RUNS
from part_7.reward_figures import sample_stories, score_stories
from part_7.reward_model import load_reward_model
from part_7.sanity_checks import best_of_n, best_of_n_kl
from part_8.ppo_config import Config as PPOConfig
from part_8.stages import load_fine_tuned
from part_8.train_ppo import main as train_ppo
from part_9.grpo_config import RUNS
from part_9.grpo_config import Config as GRPOConfig
from part_9.train_grpo import main as train_grpo

METHODS = {"PPO": (train_ppo, PPOConfig, {}), "GRPO": (train_grpo, GRPOConfig, {}),
           "Dr. GRPO": (train_grpo, GRPOConfig, dict(normalise=False, aggregation="constant"))}
STYLES = {"PPO": (BLUE, "-"), "GRPO": (ORANGE, "--"), "Dr. GRPO": (GREEN, "-."), "best of n": (BLACK, ":")}
HELD = {"policy": SKY, "its gradient": BLUE, "its moments": PURPLE, "critic, gradient, moments": RED, "reference": GREEN,
        "reward model": ORANGE}


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "what all begin as, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "the reward, a checkpoint of part_7/train_reward_model.py")
    steps: int = option(22, "steps of each run")
    batch_size: int = option(96, "answers a step")
    n_prompts: int = option(60, "held-out prompts of best-of-n")
    n_samples: int = option(32, "the greatest n")
    window: int = option(3, "steps whose mean is drawn")
    seed: int = option(1, "seed of prompts, samples and minibatches")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), steps=3, batch_size=16, n_prompts=6, n_samples=4,
                                 reward_model=str(REWARD_RUNS / "quick" / "best.pt"), window=1)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "n_prompts", "n_samples", "window")
        if self.window > self.steps:
            raise InputError(f"--window {self.window} must not be above --steps {self.steps}")
        for name in METHODS:
            run_config(self, name)


def run_config(config, name):
    """The flags of a method's run."""
    _, config_class, changes = METHODS[name]
    out = RUNS / f"{'quick_' if config.quick else ''}comparison_{name.lower().replace('. ', '_')}"
    own = {flag: getattr(config, flag) for flag in ("sft", "reward_model", "steps", "batch_size", "seed", "device")}
    if config_class is PPOConfig:
        changes = changes | {"value_warmup": PPOConfig.value_warmup * config.steps // PPOConfig.steps}  # the same share
    return config_class(**own, **changes, no_end_penalty=1.0, minibatch_size=config.batch_size // 2, n_held_out=0, n_tasks=0,
                        n_prompts=config.steps * config.batch_size, save_every=config.steps, out=str(out))


def smooth(values, window):
    """The means of `window` values in a row: (N - window + 1,)."""
    return np.convolve(values, np.ones(window) / window, "valid")


def memory(n_policy, n_reward, n_critic):
    """Megabytes held during training, in fp32, by each of HELD, from the numbers of weights; caches and activations come on
    top."""
    policy, reward, critic = (4 * n / 1e6 for n in (n_policy, n_reward, n_critic))
    return {"policy": policy, "its gradient": policy, "its moments": 2 * policy, "critic, gradient, moments": 4 * critic,
            "reference": policy, "reward model": reward}


def main(config):
    device = pick_device(config.device)
    policy, tokenizer, _ = load_fine_tuned(config.sft, device)
    reward_model, _, _ = load_reward_model(config.reward_model, device)
    try:
        tasks, responses, utilities = sample_stories(policy, tokenizer, config.n_prompts, config.n_samples, config.seed)
    except ValueError as error:
        raise InputError(f"--n_prompts {config.n_prompts}: {error}") from None
    runs = {}
    for name in tqdm(METHODS, unit="run", disable=None):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            *records, _ = METHODS[name][0](run_config(config, name))
        runs[name] = {key: smooth([record[key] for record in records], config.window)
                      for key in ("gold", "kl", "score", "tokens", "seconds")}
    rewards = score_stories(reward_model, tokenizer, tasks, responses)
    sizes = [2**i for i in range(config.n_samples.bit_length()) if 2**i <= config.n_samples]
    best = [best_of_n(rewards, utilities, n).mean().item() for n in sizes]
    budget = min(run["tokens"][-1] for run in runs.values())

    print(f"at {budget:,.0f} generated tokens, the least of the three runs; means of {config.window} steps\n{'':10s}"
          f"{'gold utility':>14s}{'reward':>9s}{'KL, nats':>10s}{'seconds':>9s}{'held, MB':>10s}")
    n_critic = policy.n_params() - policy.head.weight.numel()  # whose head gives one number
    held = {name: memory(policy.n_params(), reward_model.n_params(), n_critic * (name == "PPO")) for name in METHODS}
    for name, run in runs.items():
        gold, score, kl, seconds = (np.interp(budget, run["tokens"], run[key]) for key in ("gold", "score", "kl", "seconds"))
        print(f"{name:10s}{gold:14.2f}{score:9.2f}{kl:10.2f}{seconds:9.1f}{sum(held[name].values()):10.1f}")
    for n, utility in zip(sizes, best):
        print(f"best of {n:<4d}{utility:12.2f}{'':9s}{best_of_n_kl(n):10.2f}    trains nothing; every answer costs {n}")

    fig, axes = plt.subplots(2, 2, figsize=(11, 8.4))
    ax_kl, ax_tokens, ax_seconds, ax_memory = axes.flat
    for name, run in runs.items():
        color, line = STYLES[name]
        for ax, key, scale in ((ax_kl, "kl", 1), (ax_tokens, "tokens", 1e-3), (ax_seconds, "seconds", 1)):
            ax.plot(run[key] * scale, run["gold"], color=color, linestyle=line, label=name)
    color, line = STYLES["best of n"]
    ax_kl.plot([best_of_n_kl(n) for n in sizes], best, color=color, linestyle=line, marker="o", label="best of n")
    ax_kl.set(xlabel="KL from the fine-tuned model (nats an answer)", title="what it costs in divergence")
    ax_tokens.set(xlabel="generated tokens (thousands)", title="... in tokens")
    ax_seconds.set(xlabel="seconds of training", title="... in time")
    for ax in (ax_kl, ax_tokens, ax_seconds):
        ax.set_ylabel("gold utility")
        ax.legend(loc="lower right")
    left = np.zeros(len(METHODS))
    for part, color in HELD.items():
        widths = np.array([held[name][part] for name in METHODS])
        ax_memory.barh(list(METHODS), widths, 0.6, left, color=color, label=part)
        left += widths
    ax_memory.invert_yaxis()
    ax_memory.set(xlabel="held while training (MB, computed)", title="... in memory", ylim=(4.4, -0.6))
    ax_memory.legend(loc="lower center", ncols=2, fontsize=9)
    print(save_figure(
        fig, figure_path(__file__, "ppo_vs_grpo", config.quick), title="One reward model, four ways to use it",
        caption=f"Gold utility of the {config.batch_size} answers of a step, means of {config.window} steps, seed "
                f"{config.seed}; {config.steps} steps each, same fine-tuned model and reward model. Top left: against the "
                f"divergence from the fine-tuned model, with best-of-n for n up to {sizes[-1]} ({config.n_prompts} held-out "
                "prompts; its KL by the formula of lesson 7.4). Top right and bottom left: against generated tokens and "
                "seconds. Bottom right: weights, gradients and moments in fp32, computed; GRPO holds no critic.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
