"""Lesson 7.1 - what does the annotator value, and how much of it is in his choices?

The fine-tuned model of part_6/train_sft.py answers prompts; an annotator, whose utility is known term by term, chooses
between two answers at a time. Prints the terms of some answers to one prompt, a table of the sources of pairs, and an
example of each. What to see: where the policy's own stories stand; that a choice is almost a coin toss between answers of
nearly the same utility and almost sure between unlike ones; and which sources give labels that can be relied on. The pairs
are written to out/preferences.jsonl: part_7/train_reward_model.py --data learns from them as from one's own.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLACK, BLUE, ORANGE, SKY, YELLOW, figure_path, plt, save_figure
from part_2.checkpoint import write_atomically
from part_6.chat_model import TRAINER, load_model
from part_6.metrics import bootstrap_interval
from part_6.prompt_template import END
from part_6.sft_config import RUNS as SFT_RUNS
from part_6.tasks import check_story
from part_7.gold_utility import consistency, gold_utility, preference_probability, utility_terms
from part_7.preference_data import SOURCES, make_pairs
from part_7.preference_files import as_line
from part_7.reward_figures import sample_stories

TONES = {"happy": YELLOW, "neutral": SKY, "sad": BLUE, None: BLACK}  # of the last sentence; None: it is not of the grammar
OUTCOMES = {"tie": YELLOW, "with the truth": SKY, "against it": BLACK}
N_SAMPLES = 6  # of each story
WIDTH, SHOWN, FEWEST = 0.25, 3.0, 10  # of bins; up to which utility or gap they are drawn; of at least so many pairs


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "the policy, a checkpoint of part_6/train_sft.py")
    n_stories: int = option(300, f"story prompts; {N_SAMPLES} samples each")
    n_exact: int = option(210, "tasks of the other families; 2 samples each")
    temperature: float = option(0.4, "the annotator's; near 0 he never errs")
    seed: int = option(0, "seed of prompts, samples and choices")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), n_stories=40, n_exact=21)

    def __post_init__(self):
        check_positive(self, "n_stories", "n_exact", "temperature")


def show(one):
    return f"{one.text[:70]!r}{'...' * (len(one.text) > 70)}{'' if one.ended else ' (no end token)'}"


def print_terms(tasks, pairs):
    """The utility, term by term, of the answers in the pairs of one story: of the one with most different utilities."""
    answers = {task: {} for task in tasks}
    prompts = {task.prompt: task for task in tasks}
    for pair in pairs:
        if task := prompts.get(pair.prompt[0]["content"]):
            answers[task] |= {one: gold_utility(task, *one) for one in (pair.chosen, pair.rejected)}
    task = max(answers, key=lambda task: len(set(answers[task].values())))
    print(f"{task.prompt}\n" + "".join(f"{name:>11s}" for name in utility_terms(task, "")) + f"{'utility':>11s}")
    for one, utility in sorted(answers[task].items(), key=lambda item: -item[1]):
        values = [*utility_terms(task, *one).values(), utility]
        print("".join(f"{value + 0.0:11.2f}" for value in values) + f"   {show(one)}")


def print_sources(labelled, temperature):
    """A row a source. Returns {source: (number of ties, of labels with the truth, of labels against it)}."""
    counts = {}
    print(f"\n{'source':10s}{'pairs':>7s}{'ties':>7s}{'mean |gap|':>12s}{'consistency':>13s}{'against the truth':>19s}")
    for name in (*SOURCES, "all"):
        gaps = [gap for pair, gap in zip(labelled.pairs, labelled.gaps) if name in (pair.source, "all")]
        n_ties = sum(name in (tie.source, "all") for tie in labelled.ties)
        counts[name] = n_ties, sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
        print(f"{name:10s}{len(gaps):7,d}{n_ties:7,d}" + (
            f"{np.abs(gaps).mean():12.2f}{consistency(gaps, temperature):13.1%}{counts[name][2] / len(gaps):19.1%}"
            if gaps else ""))
    return counts


def print_examples(labelled):
    for source in SOURCES:
        for pair, gap in [both for both in zip(labelled.pairs, labelled.gaps) if both[0].source == source][:1]:
            print(f"\n{source}: {pair.prompt[0]['content']}\n    chosen    {show(pair.chosen)}\n    rejected  "
                  f"{show(pair.rejected)}\n    gap {gap:+.2f}{'' if gap > 0 else ': against the truth'}")


def draw_choices(ax, gaps, temperature):
    """Share of choices of the better answer in bins of the gap, over the logistic curve. Returns the bins drawn:
    {bin: list of bool}."""
    bins = {}
    for gap in gaps:
        bins.setdefault(round(abs(gap) / WIDTH), []).append(gap > 0)
    bins = {i: bins[i] for i in sorted(bins) if len(bins[i]) >= FEWEST and i * WIDTH <= SHOWN}
    x = np.linspace(0, SHOWN, 200)
    ax.plot(x, [100 * preference_probability(gap, temperature) for gap in x], color=ORANGE,
            label="1 / (1 + exp(-gap / temperature))")
    for i, own in bins.items():
        at = np.mean([abs(gap) for gap in gaps if round(abs(gap) / WIDTH) == i])
        low, high = bootstrap_interval([own])
        ax.plot([at, at], [100 * low, 100 * high], color=BLUE, linewidth=1.5)
        ax.plot(at, 100 * np.mean(own), "o", color=BLUE, markersize=5)
    ax.plot([], [], "o-", color=BLUE, markersize=5, linewidth=1.5, label="his choices, with 95 % interval")
    ax.set(xlabel="gap of utility between the two answers", ylabel="better answer chosen (%)", ylim=(30, 102))
    ax.legend(loc="lower right", fontsize=9)
    return bins


def main(config):
    policy, tokenizer, _ = load_model(config.sft, pick_device(config.device))
    if END not in tokenizer.special_ids:
        raise InputError(f"{config.sft} is a base model; make a fine-tuned one with: python3 {TRAINER}")
    labelled = make_pairs(policy, tokenizer, "train", config.n_stories, config.n_exact, config.temperature, config.seed,
                          N_SAMPLES)
    tasks, samples, utilities = sample_stories(policy, tokenizer, config.n_stories, N_SAMPLES, config.seed, "train")
    print_terms(tasks, labelled.pairs)
    counts = print_sources(labelled, config.temperature)
    print_examples(labelled)

    fig, (ax_story, ax_choice, ax_source) = plt.subplots(1, 3, figsize=(13, 4.6))
    tones = [check_story(task.prompt, one.text)["tone"] for task, own in zip(tasks, samples) for one in own]
    utilities = utilities.flatten().numpy()
    of_tone = [utilities[[own == tone for own in tones]] for tone in TONES]
    ax_story.hist(of_tone, bins=np.arange(-SHOWN, 2.01, WIDTH), stacked=True, color=list(TONES.values()), edgecolor="white",
                  label=[f"{tone or 'no grammar'}: {len(own) / len(tones):.0%}" for tone, own in zip(TONES, of_tone)])
    ax_story.set(xlabel="utility", ylabel="stories of the policy", title="what the policy's stories are worth",
                 xlim=(-SHOWN - 1, 2))
    ax_story.legend(title="last sentence", loc="upper left", fontsize=9, title_fontsize=9)
    bins = draw_choices(ax_choice, labelled.gaps, config.temperature)
    ax_choice.set_title("how the annotator chooses")
    left = np.zeros(len(SOURCES))
    for i, (outcome, color) in enumerate(OUTCOMES.items()):
        share = np.array([100 * counts[source][i] / max(1, sum(counts[source])) for source in SOURCES])
        ax_source.bar_label(ax_source.barh(SOURCES, share, left=left, color=color, label=outcome), fmt="%.0f",
                            label_type="center", fontsize=10, color="white" if color == BLACK else "black")
        left += share
    ax_source.set(xlabel="candidates (%)", title="what comes of a source's candidates", xlim=(0, 100))
    ax_source.invert_yaxis()
    ax_source.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3, fontsize=10)
    n_ties, n_with, n_against = counts["all"]
    path = figure_path(__file__, "preference_data", config.quick)
    print(save_figure(
        fig, path, title="A utility that is known, and choices that err",
        caption=f"Left: utility of {len(utilities):,} samples of the policy for {len(tasks)} story prompts, mean "
                f"{utilities.mean():.2f}; {(utilities < -SHOWN).sum()} of them are below {-SHOWN:g} and not drawn; no "
                f"grammar: the last sentence breaks it. Middle: {sum(map(len, bins.values())):,} choices at temperature "
                f"{config.temperature:g}, in bins {WIDTH} wide; a dot without a whisker: all of the bin were the same. "
                f"Right: of {n_ties + n_with + n_against:,} candidates {n_ties} are ties, which get no label; {n_against} "
                f"of the {n_with + n_against:,} labels go against the truth.",
        command=command_line(__file__, config)))
    lines = path.with_name("preferences.jsonl")
    write_atomically(lines, "".join(as_line(pair) + "\n" for pair in labelled.pairs).encode("utf-8"))
    print(f"{lines}\nlearn from them with: python3 part_7/train_reward_model.py --data "
          f"{lines.relative_to(Path(__file__).resolve().parents[1]).as_posix()}")


if __name__ == "__main__":
    run_script(main, Config, __doc__)
