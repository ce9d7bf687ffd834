"""Lesson 9.2 - who gets how much credit?

Answers are right (1) or wrong (0), a share p of a prompt's answers right. Draws the advantage of either kind, with and
without dividing by the group's spread, and how much a prompt's gradient counts; then how many groups are all alike and teach
nothing, in theory and for the fine-tuned model's answers to tasks that reinforcement learning may see. What to see: divided,
prompts count the more the nearer p is to 0 or 1; and most groups of this model are all right, in some families far more than
if their prompts were equally hard.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_6.task_families import FAMILIES
from part_6.tasks import make_tasks
from part_6.sft_config import RUNS as SFT_RUNS
from part_8.stages import load_fine_tuned
from part_9.group_advantage import group_advantages, has_spread
from part_9.pass_at_k import count_right

SIZES = {4: (ORANGE, "-."), 8: (BLUE, "-"), 16: (GREEN, "--")}


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "the fine-tuned model, a checkpoint of part_6/train_sft.py")
    group_size: int = option(8, "answers to each prompt, G, of the advantages and of the model")
    n_tasks: int = option(48, "tasks of each family")
    seed: int = option(0, "of tasks and samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), n_tasks=2)

    def __post_init__(self):
        check_positive(self, "n_tasks")
        if self.group_size < 2:
            raise InputError(f"--group_size must be at least 2, not {self.group_size}")


def first_right(c, G):
    """The rewards of a group of G whose first c answers are right: (G,)."""
    return torch.tensor([1.0] * c + [0.0] * (G - c), dtype=torch.float64)


def prompt_weight(p, G, normalise):
    """How much a prompt counts: the expected gradient of a group of G over that of p, exactly. p: (n,) in (0, 1).

    The gradient of a right answer's logarithm is grad p / p on average, and - grad p / (1 - p) that of a wrong one's.
    """
    weight = torch.zeros_like(p)
    for c in range(G + 1):  # answers of the group that are right
        rewards = first_right(c, G)
        advantages = group_advantages(rewards, G, normalise)
        mean = (advantages @ rewards) / G / p - (advantages @ (1 - rewards)) / G / (1 - p)
        weight += math.comb(G, c) * p**c * (1 - p) ** (G - c) * mean
    return weight


def main(config):
    model, tokenizer, _ = load_fine_tuned(config.sft)
    try:
        asked = {family: make_tasks("rl", config.n_tasks, config.seed, (family,), distinct=True) for family in FAMILIES}
    except ValueError as error:
        raise InputError(f"--n_tasks {config.n_tasks}: {error}") from None
    G, p = config.group_size, torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    fig, (ax_advantage, ax_weight, ax_spread) = plt.subplots(1, 3, figsize=(13, 4.8))
    for normalise, color, label in ((False, ORANGE, "not divided"), (True, BLUE, "divided")):
        counts, spread = range(1, G), (p * (1 - p)).sqrt() if normalise else 1.0
        ends = np.array([group_advantages(first_right(c, G), G, normalise)[[0, -1]].tolist() for c in counts])
        for own, exact, kind, line in ((ends[:, 0], 1 - p, "right", "^-"), (ends[:, 1], -p, "wrong", "v--")):
            ax_advantage.plot(p, exact / spread, line[1:], color=color)
            ax_advantage.plot(np.array(counts) / G, own, line[0], color=color, label=f"{kind}, {label}")
        weight = prompt_weight(p, G, normalise)
        ax_weight.plot(p, weight, color=color, label=f"{label}, G = {G}")
        shown = {share: weight[(p - share).abs().argmin()].item() for share in (0.005, 0.05, 0.1, 0.5)}
        print(f"weight of a prompt, {label:11s}: " + ", ".join(f"{w:.3f} at p {share:g}" for share, w in shown.items()))
    ax_weight.plot(p, 1 / (p * (1 - p)).sqrt(), color=BLACK, linestyle=":", label="divided, G large")
    ax_advantage.set(ylim=(-5, 5), xlabel="share of right answers, p", ylabel="advantage", title=f"one answer, G = {G}")
    ax_weight.set(ylim=(0, 6), xlabel="chance of a right answer, p", ylabel="gradient / gradient of p",
                  title="weight of a prompt")

    for size, (color, line) in SIZES.items():
        ax_spread.plot(p, p**size + (1 - p) ** size, color=color, linestyle=line, label=f"G = {size}")
    print(f"\n{'family':>9s}   right   groups alike of {config.n_tasks}   expected with one p   all right   all wrong")
    total = 0.0
    for family, tasks in asked.items():
        right = torch.tensor(count_right(model, tokenizer, tasks, G, seed=config.seed))
        rewards = (torch.arange(G) < right[:, None]).float()
        share, alike = rewards.mean().item(), 1 - has_spread(rewards.flatten(), G).float().mean().item()
        total += alike / len(FAMILIES)
        ax_spread.plot(share, alike, "o", color=BLACK, label=f"families, G = {G}" if family == list(FAMILIES)[0] else None)
        print(f"{family:>9s}{share:8.3f}{alike:17.3f}{share**G + (1 - share)**G:25.3f}"
              f"{(right == G).float().mean():12.3f}{(right == 0).float().mean():12.3f}")
    print(f"groups without spread, all families: {total:.0%}")
    ax_spread.set(xlabel="share of right answers, p", ylabel="share of groups", title="groups all alike", ylim=(0, 1.05))
    for ax, place in ((ax_advantage, "upper right"), (ax_weight, "upper center"), (ax_spread, "upper center")):
        ax.legend(loc=place, fontsize=10)
    print(save_figure(
        fig, figure_path(__file__, "group_advantage", config.quick), title="Credit within a group",
        caption=f"Left: advantage of a right and of a wrong answer in a group of {G} (marks; lines: as a formula of p), "
                "divided by the group's spread or not. Middle: the expected gradient of a group over that of p, the chance "
                "of a right answer. Right: share of groups whose answers are all right or all wrong, if all prompts had the "
                f"same p (lines), and for the fine-tuned model on {config.n_tasks} tasks of each family (dots), "
                f"{total:.0%} altogether: these teach nothing.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
