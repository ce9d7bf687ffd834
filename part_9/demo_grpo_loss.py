"""Lesson 9.3 - one batch, three averages: what does a token weigh, and what becomes of the wrong answers' length?

Draws the weight of a token over the length of its answer. Then a policy learns where the first token alone decides whether
an answer is right: what follows changes nothing, so what becomes of the lengths is the averaging's doing, or chance. What to
see: averaged within each answer first, wrong answers get longer, as each of their tokens is punished less, and right ones
shorter; with the other two, lengths stay about where they were.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, band, figure_path, plt, save_figure
from part_8.toy_language import TablePolicy, ToyLanguage
from part_9.group_advantage import group_advantages
from part_9.grpo_loss import AGGREGATIONS, grpo_losses, token_weights

STYLES = dict(zip(AGGREGATIONS, ((ORANGE, "-.", "s"), (BLUE, "-", "o"), (GREEN, "--", "^"))))
RIGHT, WRONG = 0, 1  # the first token


@dataclass(frozen=True)
class Config:
    length: int = option(6, "most tokens of an answer")
    right: float = option(0.1, "share of right answers at first")
    ending: float = option(0.3, "chance at first that a token after the first one is the end")
    steps: int = option(150, "steps, a batch of answers each")
    batch_size: int = option(64, "answers of a batch")
    group_size: int = option(8, "answers to each prompt")
    normalise: bool = option(True, "divide advantages by the group's spread")
    lr: float = option(0.02, "learning rate")
    n_seed: int = option(3, "runs with each average")
    seed: int = option(0, "the first seed, of the samples")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(length=4, steps=5, n_seed=2)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "lr", "n_seed")
        if self.length < 2 or not 0 < self.right < 1 or not 0 < self.ending < 1:
            raise InputError(f"--length {self.length} must be at least 2, --right {self.right} and --ending {self.ending} "
                             "between 0 and 1")
        if self.group_size < 2 or self.batch_size % self.group_size:
            raise InputError(f"--batch_size {self.batch_size} must be a multiple of --group_size {self.group_size}, "
                             "which must be at least 2")


def first_policy(config):
    """A TablePolicy with the config's chances; the first token never ends the answer."""
    policy, other = TablePolicy(ToyLanguage(3, config.length)), (1 - config.ending) / 2
    with torch.no_grad():
        policy.logits[:] = torch.tensor([other, other, config.ending]).log()
        policy.logits[0] = torch.tensor([config.right, 1 - config.right, 1e-12]).log()
    return policy


def figures(probabilities, lengths, first):
    """The mean length of wrong and of right answers, and the share of right ones, exactly."""
    wrong, right = (probabilities * (first == kind) for kind in (WRONG, RIGHT))
    return [((kind @ lengths) / kind.sum()).item() for kind in (wrong, right)] + [right.sum().item()]


def train(config, how, seed):
    """Train with one average. Returns the `figures` before each step and after the last: (steps + 1, 3)."""
    generator, policy = torch.Generator().manual_seed(seed), first_policy(config)
    language = policy.language
    lengths, first, course = language.mask.sum(1).float(), language.tokens[:, 0], []
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    for _ in range(config.steps + 1):
        with torch.no_grad():
            probabilities = policy.probabilities()
            course.append(figures(probabilities, lengths, first))
        rows = torch.multinomial(probabilities, config.batch_size, replacement=True, generator=generator)
        mask, (log_probs, _) = language.mask[rows], policy(rows)
        advantages = group_advantages((first[rows] == RIGHT).float(), config.group_size, config.normalise)
        losses, _ = grpo_losses(log_probs, log_probs.detach(), log_probs.detach(), advantages)
        loss = torch.where(mask, losses * token_weights(mask, how, config.length), 0.0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.array(course)


def main(config):
    fig, (ax_weight, ax_length, ax_right) = plt.subplots(1, 3, figsize=(13, 4.8))
    lengths = torch.tensor([1, 2, 4, 8, 16, 32])
    mask = torch.arange(32) < lengths[:, None]
    for how, (color, line, marker) in STYLES.items():
        weights = token_weights(mask, how, 32)[:, 0]
        ax_weight.plot(lengths, weights, color=color, linestyle=line, marker=marker, label=how)
        print(f"{how:8s} weight of a token of an answer of " + ", ".join(
            f"{n}: {w:.4f}" for n, w in zip(lengths.tolist(), weights.tolist())))
    ax_weight.set(xscale="log", yscale="log", xlabel="tokens of its answer", ylabel="weight in the loss",
                  title="a token's weight, one batch", xticks=lengths.tolist(), xticklabels=lengths.tolist())
    ax_weight.minorticks_off()
    ax_weight.legend()

    print(f"{'':8s}  mean length of wrong answers: first    last, by seed             of right ones, last")
    ends = {}
    for how, (color, line, _) in STYLES.items():
        runs = np.array([train(config, how, config.seed + i) for i in range(config.n_seed)])  # (n_seed, steps + 1, 3)
        band(ax_length, range(config.steps + 1), runs[..., 0], color=color, linestyle=line, label=f"{how}, wrong")
        band(ax_right, range(config.steps + 1), runs[..., 2], color=color, linestyle=line, label=how)
        ax_length.plot(range(config.steps + 1), runs[..., 1].mean(0), color=color, linestyle=line, linewidth=1)
        before, ends[how] = runs[0, 0, 0], runs[:, -1]
        wrong, right = (", ".join(f"{x:.2f}" for x in ends[how][:, i]) for i in (0, 1))
        print(f"{how:8s}{before:37.2f}    {wrong:26s}{right};  right at last "
              + ", ".join(f"{x:.0%}" for x in ends[how][:, 2]))
    ax_length.axhline(before, color=BLACK, linewidth=1, linestyle=":")
    ax_length.set(xlabel="steps", ylabel="mean length (tokens)", title="length; thin lines: right answers",
                  ylim=(1, config.length + 1))
    ax_right.set(xlabel="steps", ylabel="share of right answers", title="what is learnt", ylim=(0, 1))
    ax_length.legend(loc="upper left", fontsize=10)
    ax_right.legend(loc="lower right")
    print(save_figure(
        fig, figure_path(__file__, "grpo_loss", config.quick), title="Three ways to average over tokens",
        caption="Left: a token's weight in a batch of six answers. Middle: mean length of wrong (thick, with bands) and "
                "right (thin) answers where only the first token decides and length changes nothing; dotted: at first, "
                f"{before:.2f}. After {config.steps} steps wrong answers have " + ", ".join(
                    f"{end[:, 0].mean():.2f} ({how})" for how, end in ends.items())
                + " tokens. Right: share of right answers. Means, and bands from lowest to highest of "
                f"{config.n_seed} seeds.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
