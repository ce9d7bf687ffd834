"""Lesson 7.4 - what has the reward model learnt, and what would an optimiser find in it?

Judges held-out pairs and held-out stories of the fine-tuned model with the reward model of part_7/train_reward_model.py, and
because the annotator's utility is known here, the truth stands beside each figure. What to see: where accuracy comes near to
the annotator's own consistency, and where not; whether a predicted 80 % is 80 %; which spoilt answers the reward model likes
as much as good ones, or better; and how far reward and utility of the best of n samples go together as n grows.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, RED, SKY, figure_path, plt, save_figure
from part_6.chat_model import load_model
from part_6.metrics import bootstrap_interval
from part_6.prompt_template import END
from part_6.sft_config import RUNS as SFT_RUNS
from part_6.tasks import check_story, verify
from part_7.perturbations import SEEN
from part_7.preference_data import make_pairs, make_prompts
from part_7.reward_config import RUNS
from part_7.reward_figures import (
    correlations, pair_rewards, pair_table, perturbation_table, sample_stories, score_stories)
from part_7.reward_model import load_reward_model
from part_7.sanity_checks import best_of_n, best_of_n_kl, calibration

TONE_STYLES = {"happy": (GREEN, "-"), "neutral": (BLUE, "--"), "sad": (PURPLE, "-."), "faulty": (BLACK, ":")}


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "the policy, a checkpoint of part_6/train_sft.py")
    checkpoint: str = option(str(RUNS / "reward_model" / "best.pt"), "a checkpoint of part_7/train_reward_model.py")
    n_stories: int = option(300, "held-out story prompts of the pairs")
    n_exact: int = option(315, "held-out tasks of the other families, of the pairs")
    n_prompts: int = option(96, "held-out story prompts of all other checks")
    n_samples: int = option(64, "samples for each of them: the greatest n of best-of-n")
    temperature: float | None = option(None, "the annotator's; that of the training run if left out")
    seed: int = option(0, "seed of prompts, samples and choices")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), checkpoint=str(RUNS / "quick" / "best.pt"),
                                 n_stories=14, n_exact=14, n_prompts=14, n_samples=8)

    def __post_init__(self):
        check_positive(self, "n_stories", "n_exact", *(["temperature"] if self.temperature is not None else []))
        if min(self.n_prompts, self.n_samples) < 2:
            raise InputError(f"--n_prompts {self.n_prompts} and --n_samples {self.n_samples} must be at least 2")


def calibrate(pairs_chosen, pairs_rejected, gain, seed):
    """Bins of lesson 7.4's `calibration`, each pair put either way round by a coin: else every outcome would be 1."""
    difference = (pairs_chosen - pairs_rejected) / gain  # as it was trained, before rewards were given mean 0 and spread 1
    first = torch.rand(len(difference), generator=torch.Generator().manual_seed(seed)) < 0.5  # the chosen one comes first
    return calibration(torch.sigmoid(torch.where(first, difference, -difference)), first)


def best_of(rewards, utilities, n_samples):
    """Best-of-n for n = 1, 2, 4 ... n_samples: a list of (n, reward, utility, the oracle's utility), each (n_prompts,)."""
    sizes = [2**i for i in range(n_samples.bit_length()) if 2**i < n_samples] + [n_samples]
    return [(n, *(best_of_n(by, of, n) for by, of in ((rewards, rewards), (rewards, utilities), (utilities, utilities))))
            for n in sizes]


def print_tables(pairs, bins, figures, spoilt, best):
    """All that the figures draw, as tables."""
    print(f"{'held-out pairs':26s}{'accuracy, %':>24s}{'truly better, %':>18s}{'annotator, %':>15s}{'pairs':>8s}")
    for name, row in pairs.items():
        print(f"{name:26s}{interval(row, 'accuracy'):>24s}{100 * row['agreement']:18.1f}{100 * row['consistency']:15.1f}"
              f"{row['n']:8d}")
    print("accuracy: the annotator's choice has the higher reward; truly better: the better answer has; annotator: how\n"
          "often he himself chooses it, so that nobody can predict him more often\n")
    print(f"{'predicted, %':26s}" + "".join(f"{100 * p:8.1f}" for p, _, _ in bins))
    print(f"{'observed, %':26s}" + "".join(f"{100 * share:8.1f}" for _, share, _ in bins))
    print(f"{'pairs':26s}" + "".join(f"{n:8d}" for _, _, n in bins))
    print(f"mean difference of both: {100 * calibration_error(bins):.1f} points\n\n"
          f"Spearman's correlation of reward and utility: {figures['spearman']:.3f}\n"
          "Pearson's of reward and length at fixed utility: "
          f"{figures['length_correlation']:+.3f}\n")
    print(f"{'spoilt answer':28s}{'good one above it, %':>24s}{'drop in reward':>18s}{'in utility':>15s}{'pairs':>8s}")
    for name, row in spoilt.items():
        print(f"{mark(name):28s}{interval(row, 'share'):>24s}{row['drop']:18.2f}{row['gold_drop']:15.2f}{row['n']:8d}")
    print(f"\n{'best of n':>9s}{'KL, nats':>12s}{'reward':>10s}{'utility':>10s}{'if chosen by utility':>24s}")
    for n, *columns in best:
        print(f"{n:9d}{best_of_n_kl(n):12.2f}" + "".join(
            f"{column.mean().item():{width}.3f}" for column, width in zip(columns, (10, 10, 24))))


def mark(name):
    """A perturbation's name, with a star if the training pairs hold its kind."""
    return f"{name} *" if name in SEEN else name


def interval(row, name):
    """A share in percent with its interval, as a cell of a table."""
    return f"{100 * row[name]:.1f} [{100 * row['low']:5.1f}, {100 * row['high']:5.1f}]"


def calibration_error(bins):
    """The mean of |predicted - observed| over bins, weighted by their pairs (Naeini et al. 2015, ECE)."""
    return sum(n * abs(p - share) for p, share, n in bins) / sum(n for _, _, n in bins)


def draw_bars(ax, table, measure, color, **labels):
    """A share in percent of each row, with its 95 % interval, the first row on top."""
    values, low, high = (100 * np.array([row[name] for row in table.values()]) for name in (measure, "low", "high"))
    ax.barh(range(len(table)), values, color=color, xerr=np.maximum(0, (values - low, high - values)),
            error_kw=dict(linewidth=1.2, capsize=2))
    ax.axvline(50, color=BLACK, linewidth=1, linestyle=":")
    ax.set(yticks=range(len(table)), yticklabels=list(table), ylim=(len(table) - 0.4, -0.6), xlim=(0, 102), **labels)


def draw_checks(axes, pairs, bins, rewards, utilities, spearman, spoilt):
    """Accuracy, calibration, reward over utility, perturbations. axes: (2, 2)."""
    (ax_pairs, ax_calibration), (ax_spoilt, ax_gold) = axes
    draw_bars(ax_pairs, pairs, "accuracy", SKY, xlabel="pairs (%); tick: the annotator's consistency",
              title="the annotator's choice has more reward")
    ax_pairs.plot([100 * row["consistency"] for row in pairs.values()], range(len(pairs)), "|", color=RED, markersize=13,
                  markeredgewidth=2.5)
    draw_bars(ax_spoilt, {mark(name): row for name, row in spoilt.items()}, "share", ORANGE, xlabel="pairs (%)",
              title="a good story has more reward than ...")
    p, share, n = (np.array(column) for column in zip(*bins))
    by_chance = 196 * np.sqrt(p * (1 - p) / n)  # in percent
    ax_calibration.plot([0, 100], [0, 100], color=BLACK, linewidth=1)
    ax_calibration.errorbar(100 * p, 100 * p, by_chance, fmt="none", color=BLACK, linewidth=1.2, capsize=3)
    ax_calibration.plot(100 * p, 100 * share, "o", color=BLUE)
    ax_calibration.set(xlabel="predicted probability (%)", ylabel="observed (%)", xlim=(-2, 102), ylim=(-4, 104),
                       title="calibration")
    ax_gold.scatter(utilities.flatten(), rewards.flatten(), s=9, alpha=0.06, color=BLUE, linewidths=0)
    ax_gold.set(xlabel="utility", ylabel="reward (standard deviations)", title=f"stories, Spearman {spearman:.3f}")


def draw_policy(axes, tasks, responses, rewards, utilities, best):
    """The distribution of rewards, and best-of-n in standard deviations of the policy's samples."""
    ax_tone, ax_best = axes
    kinds = np.array([check_story(task.prompt, text)["tone"] if ended and verify(task, text) else "faulty"
                      for task, own in zip(tasks, responses) for text, ended in own])
    edges, values = np.linspace(rewards.min().item(), rewards.max().item(), 51), rewards.flatten().numpy()
    for kind, (color, line) in TONE_STYLES.items():
        ax_tone.hist(values[kinds == kind], edges, histtype="step", color=color, linestyle=line, linewidth=2, label=kind)
    ax_tone.set(xlabel="reward (standard deviations)", ylabel="samples", title="the policy's stories by tone")
    ax_tone.legend(loc="upper left")
    sizes, kl = [n for n, *_ in best], [best_of_n_kl(n) for n, *_ in best]
    for i, (own, color, line, label) in enumerate((
            (rewards, RED, "--", "reward"), (utilities, BLUE, "-", "utility"),
            (utilities, BLACK, ":", "utility, if chosen by it"))):
        columns = [((column[i + 1] - own.double().mean()) / own.double().std()).tolist() for column in best]
        ax_best.plot(kl, np.mean(columns, axis=1), color=color, linestyle=line, marker="o", markersize=5, label=label)
        low, high = zip(*(bootstrap_interval([column]) for column in columns))
        ax_best.fill_between(kl, low, high, color=color, alpha=0.15, linewidth=0)
    ax_best.set(xlabel="KL from the policy (nats)", ylabel="of the best of n\n(standard deviations)")
    ax_best.legend(loc="lower right")
    top = ax_best.twiny()
    top.set(xlim=ax_best.get_xlim(), xlabel="n", xticks=kl, xticklabels=sizes)
    top.grid(False)
    top.spines["top"].set_visible(True)


def main(config):
    device = pick_device(config.device)
    policy, policy_tokenizer, _ = load_model(config.sft, device)
    if END not in policy_tokenizer.special_ids:
        raise InputError(f"{config.sft} is a base model; make a fine-tuned one with: python3 part_6/train_sft.py")
    model, tokenizer, state = load_reward_model(config.checkpoint, device)
    temperature = state["config"]["temperature"] if config.temperature is None else config.temperature
    make_prompts("test", config.n_prompts, 0, config.seed + 1)  # or refuse, before the work begins
    test = make_pairs(policy, policy_tokenizer, "test", config.n_stories, config.n_exact, temperature, config.seed)
    tasks, responses, utilities = sample_stories(policy, policy_tokenizer, config.n_prompts, config.n_samples,
                                                 config.seed + 1)
    chosen, rejected = pair_rewards(model, tokenizer, test.pairs)
    pairs = pair_table(test.pairs, test.gaps, chosen, rejected, temperature)
    bins = calibrate(chosen, rejected, model.gain.item(), config.seed)
    rewards = score_stories(model, tokenizer, tasks, responses)
    figures = correlations(rewards, utilities, responses)
    few = [own[:4] for own in responses]  # the best of four is a good answer, the best of 64 nearly always the same one
    spoilt = perturbation_table(model, tokenizer, tasks, few, utilities[:, :4], config.seed)
    best = best_of(rewards, utilities, config.n_samples)
    print_tables(pairs, bins, figures, spoilt, best)
    command = command_line(__file__, config)

    fig, axes = plt.subplots(2, 2, figsize=(11, 9.5), height_ratios=(1.3, 1))
    draw_checks(axes, pairs, bins, rewards, utilities, figures["spearman"], spoilt)
    print(save_figure(
        fig, figure_path(__file__, "sanity_checks", config.quick), title="What the reward model has learnt",
        caption=f"Top left: of {len(test.pairs):,} held-out pairs, the share in which the annotator's choice has the higher "
                "reward, by source and family, with 95 % bootstrap intervals, as if pairs were independent; the tick is how "
                "often the annotator himself chooses the better one; clear: utilities further apart than 0.5. Top right: "
                "predicted and observed probability that the first of two answers is chosen, in bins; whiskers: where 95 % "
                f"of the points of a calibrated model would lie. Bottom left: {config.n_prompts} good stories against the "
                f"same, spoilt in {len(spoilt)} ways; * a kind that the training pairs hold; dotted: chance. Bottom right: "
                f"{utilities.numel():,} stories of the policy, reward over utility.", command=command))
    fig, axes = plt.subplots(1, 2, figsize=(11, 5.2))
    draw_policy(axes, tasks, responses, rewards, utilities, best)
    print(save_figure(
        fig, figure_path(__file__, "best_of_n", config.quick), title="The policy's stories, and the best of n",
        caption=f"Left: rewards of {config.n_samples} stories to each of {config.n_prompts} held-out prompts, by the tone "
                "of their end; faulty: without an end, against the grammar, or off the prompt. Right: mean reward and mean "
                "utility of the story with the highest reward among n, and the utility if it were chosen by utility, over "
                "the divergence ln n - (n - 1)/n; 0 and 1 are mean and standard deviation of the policy's samples; bands: "
                "95 % bootstrap intervals over prompts.", command=command))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
