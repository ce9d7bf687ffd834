"""Lesson 9.1 - what does a baseline buy, and how many answers does a group need?

In a language of 31 answers the policy gradient is known. Prompts differ in how good their answers are, and in which is
best; a batch has 64 answers, G to each of 64 / G prompts. What to see: the mean of a group does nearly what an exact value
for each prompt would do, where one mean for the whole batch leaves the prompts' levels in as noise; it shortens the gradient
to (G - 1) / G and turns it nowhere. Right: what reading each prompt once saves, timed with the fine-tuned model.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import time
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, figure_path, plt, save_figure
from part_3.generate import generate
from part_6.sft_config import RUNS as SFT_RUNS
from part_8.stages import load_fine_tuned
from part_8.toy_language import TablePolicy, ToyLanguage
from part_9.group_advantage import group_advantages

BASELINES = {"none": (PURPLE, ":"), "batch's mean": (ORANGE, "-."), "group's mean": (BLUE, "-"),
             "exact value": (BLACK, "--")}


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "the model that is timed, a checkpoint of part_6/train_sft.py")
    n_answers: int = option(64, "answers of a batch; a power of 2")
    level: float = option(2.0, "spread of the prompts' mean rewards, around 1; within a prompt it is 1")
    n_prompts: int = option(64, "prompts there are")
    n_batches: int = option(3000, "batches drawn for each G")
    n_enumerated: int = option(4, "G up to which all groups are listed")
    n_timed: int = option(8, "prompts that are timed")
    n_samples: int = option(8, "answers to each of them")
    n_new: int = option(16, "tokens of an answer")
    longest: int = option(256, "tokens of the longest prompts")
    n_rounds: int = option(3, "rounds of timing, after one that warms up")
    seed: int = option(0, "of policy, rewards and samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), n_answers=16, n_batches=200, n_enumerated=2,
                                 n_timed=2, n_samples=2, n_new=4, longest=64, n_rounds=1)

    def __post_init__(self):
        check_positive(self, "level", "n_prompts", "n_batches", "n_timed", "n_samples", "n_new", "n_rounds")
        if self.n_answers < 4 or self.n_answers & (self.n_answers - 1):
            raise InputError(f"--n_answers must be a power of 2, at least 4, not {self.n_answers}")
        if not 2 <= self.n_enumerated <= 4 or self.longest < 16:
            raise InputError(f"--n_enumerated {self.n_enumerated} must be 2, 3 or 4, and --longest {self.longest} at "
                             "least 16")


def gradient_errors(p, scores, tables, G, config):
    """Spread of a batch's gradient over the length of its mean, for each of BASELINES.

    p: (N,) probabilities of the answers; scores: (N, W), the gradients of their logarithms; tables: (P, N) rewards.
    """
    n, batches = config.n_answers, config.n_batches
    prompts = torch.randint(len(tables), (batches, n // G)).repeat_interleave(G, 1)  # (batches, n)
    rows = torch.multinomial(p, batches * n, replacement=True).view(batches, n)
    rewards = tables[prompts, rows]
    advantages = {"none": (rewards, 1.0), "batch's mean": (rewards - rewards.mean(1, keepdim=True), (n - 1) / n),
                  "group's mean": (group_advantages(rewards.flatten(), G, normalise=False).view(batches, n), (G - 1) / G),
                  "exact value": (rewards - (tables @ p)[prompts], 1.0)}  # and how much of the gradient is left on average
    exact, errors = (tables * p).mean(0) @ scores, []
    for own, share in advantages.values():
        gradients = torch.zeros(batches, len(p)).double().scatter_add(1, rows, own / n) @ scores  # (batches, W)
        variance = ((gradients - share * exact) ** 2).sum(1).mean()
        errors.append((variance.sqrt() / (share * exact).norm()).item())
    return errors


def enumerated_share(p, scores, rewards, G):
    """The expected gradient of a group of G, over all groups there are: its part along the exact one, in that one's
    lengths, and the length of the rest. rewards: (N,) of one prompt."""
    groups = torch.cartesian_prod(*[torch.arange(len(p))] * G)  # (N^G, G)
    advantages = group_advantages(rewards[groups].flatten(), G, normalise=False)
    weights = (p[groups].prod(1, keepdim=True) / G * advantages.view(groups.shape)).flatten()
    found, exact = torch.zeros_like(p).index_add(0, groups.flatten(), weights) @ scores, (p * rewards) @ scores
    share = found @ exact / (exact @ exact)
    return share.item(), ((found - share * exact).norm() / exact.norm()).item()


def generation_seconds(model, length, config):
    """Seconds for the same answers with each prompt read once, and read for each answer: (n_rounds, 2), the two in turn."""
    prompts = torch.randint(model.config.vocab_size, (config.n_timed, length)).tolist()
    repeated, seconds = [prompt for prompt in prompts for _ in range(config.n_samples)], []
    for _ in range(config.n_rounds + 1):
        clock = [time.perf_counter()]
        for own, n_samples in ((prompts, config.n_samples), (repeated, 1)):
            generate(model, own, config.n_new, n_samples=n_samples)  # no token ends an answer
            clock.append(time.perf_counter())
        seconds.append(np.diff(clock))
    return np.array(seconds[1:])


def main(config):
    model = load_fine_tuned(config.sft)[0]
    set_seed(config.seed)
    policy = TablePolicy(ToyLanguage(), config.seed)
    p = policy.probabilities()
    scores = torch.stack([torch.autograd.grad(one.log(), policy.logits, retain_graph=True)[0].flatten() for one in p])
    p, scores = p.detach().double(), scores.double()
    tables = torch.randn(config.n_prompts, len(p)).double() + 1 + config.level * torch.randn(config.n_prompts, 1)

    fig, (ax_error, ax_share, ax_time) = plt.subplots(1, 3, figsize=(13, 4.8))
    sizes = [2**i for i in range(1, config.n_answers.bit_length())]
    errors = np.array([gradient_errors(p, scores, tables, G, config) for G in sizes])
    print(f"spread of the gradient of {config.n_answers} answers, over the length of its mean; G answers to a prompt\n"
          f"{'G':>4s}" + "".join(f"{name:>14s}" for name in BASELINES))
    for G, own in zip(sizes, errors):
        print(f"{G:4d}" + "".join(f"{x:14.2f}" for x in own))
    for own, (name, (color, line)) in zip(errors.T, BASELINES.items()):
        ax_error.plot(sizes, own, color=color, linestyle=line, marker="o", label=name)
    ax_error.set(xlabel="answers to a prompt, G", ylabel="spread / length of the mean", xscale="log", ylim=(0, None),
                 title=f"gradient of {config.n_answers} answers", xticks=sizes, xticklabels=sizes)
    ax_error.minorticks_off()
    ax_error.legend(title="baseline")

    wide = np.linspace(1, 16, 100)
    ax_share.plot(wide, (wide - 1) / wide, color=BLACK, linestyle="--", label="(G - 1) / G")
    for G in range(2, config.n_enumerated + 1):
        share, rest = enumerated_share(p, scores, tables[0], G)
        ax_share.plot(G, share, "o", color=BLUE, label="all groups listed" if G == 2 else None)
        print(f"all {len(p)**G:,} groups of {G}: {share:.4f} of the exact gradient, {rest:.0e} across it")
    ax_share.set(xlabel="answers to a prompt, G", ylabel="share of the exact gradient", ylim=(0, 1),
                 title="mean with the group's baseline", xticks=(2, 3, 4, 8, 16))
    ax_share.legend(loc="lower right")

    lengths = [16 * 2**i for i in range((config.longest // 16).bit_length())]
    times = [generation_seconds(model, length, config) for length in lengths]
    ratios = [np.median(own[:, 1] / own[:, 0]) for own in times]
    for length, own, ratio in zip(lengths, times, ratios):
        once, each = np.median(own, axis=0)
        print(f"prompts of {length:4d} tokens: read once {once:.3f} s, for each answer {each:.3f} s, ratio {ratio:.2f}")
    for column, (label, color, line) in enumerate((("read once", GREEN, "-"), ("read for each answer", ORANGE, "-."))):
        ax_time.plot(lengths, [np.median(own[:, column]) for own in times], color=color, linestyle=line, marker="o",
                     label=label)
    ax_time.set(xlabel="tokens of a prompt", ylabel="seconds", ylim=(0, None),
                title=f"{config.n_samples} answers to {config.n_timed} prompts")
    ax_time.legend()
    print(save_figure(
        fig, figure_path(__file__, "group_baseline", config.quick), title="A group's mean as the baseline",
        caption=f"Left: batches of {config.n_answers} answers in a language of {len(p)}, G to a prompt, whose mean rewards "
                f"differ by {config.level:g} and single rewards by 1 (standard deviations): spread of the gradient over the "
                f"length of its mean, {config.n_batches:,} batches for each G. Middle: the mean over all groups there are, "
                f"beside (G - 1) / G. Right: seconds for {config.n_timed * config.n_samples} answers of {config.n_new} "
                f"tokens; prompts of {lengths[-1]} tokens, read for each answer, take {ratios[-1]:.1f} times as long "
                f"(medians of {config.n_rounds}).",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
