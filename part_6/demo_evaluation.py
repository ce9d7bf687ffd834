"""Lesson 6.4 - what has fine-tuning taught, and how sure is that?

Lets the base model of part_4/train.py and the fine-tuned one of part_6/train_sft.py answer the same held-out tasks,
greedily, sampled, and as the second question of a conversation, and gives every mean its 95 % interval. The base model gets
the template's tokens first, untrained. What to see: which families were learnt, where an interval still leaves the answer
open, which are right greedily but not when sampled, and what a question before costs; then, over difficulty, where each
family gives out. All prompts, answers and verdicts go to out/answers.jsonl."""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import json
import random
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import BLUE, GREEN, ORANGE, PURPLE, figure_path, heatmap, plt, save_figure
from part_2.checkpoint import write_atomically
from part_2.sampling import check_sampling
from part_4.run_config import RUNS as PART_4_RUNS
from part_6.chat_model import TRAINER, load_model, resize_vocabulary
from part_6.evaluation import answer, held_out_tasks, judge, summarise
from part_6.prompt_template import END, chat_tokenizer
from part_6.sft_data import task_conversation
from part_6.task_families import DIFFICULTIES, FAMILIES

RUNS = Path(__file__).resolve().parent / "runs"
MEASURES = {"correct": "exact match (the verifier's verdict)", "token_f1": "token F1", "rouge_l": "ROUGE-L"}
SYSTEMS = {"base, greedy": ORANGE, "SFT, greedy": BLUE, "SFT, sampled": GREEN, "SFT, second question": PURPLE}


@dataclass(frozen=True)
class Config:
    base: str = option(str(PART_4_RUNS / "train" / "best.pt"), "a checkpoint of part_4/train.py")
    checkpoint: str = option(str(RUNS / "sft" / "best.pt"), "a checkpoint of part_6/train_sft.py")
    n_tasks: int = option(102, "held-out tasks of each family, no prompt twice; so many of each of six difficulties")
    temperature: float = option(1.0, "of the sampled answers")
    n_new: int = option(80, "most tokens of an answer")
    seed: int = option(0, "seed of the tasks and draws")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(base=str(PART_4_RUNS / "quick" / "best.pt"), checkpoint=str(RUNS / "quick" / "best.pt"),
                                 n_tasks=6, n_new=8)

    def __post_init__(self):
        check_positive(self, "n_tasks", "n_new")
        check_sampling(self.temperature, None, None)


def load_both(config):
    """(model, tokenizer) of the base model, with room for the template's tokens, and of the fine-tuned one."""
    device = pick_device(config.device)
    base, base_tokenizer, _ = load_model(config.base, device, trainer="part_4/train.py")
    base_tokenizer = chat_tokenizer(base_tokenizer)
    sft, tokenizer, _ = load_model(config.checkpoint, device)
    if END not in tokenizer.special_ids:
        raise InputError(f"{config.checkpoint} is a base model; make a fine-tuned one with: python3 {TRAINER}")
    return (resize_vocabulary(base, base_tokenizer.vocab_size), base_tokenizer), (sft, tokenizer)


def print_tables(results):
    """A table a measure: rows families, columns systems. results: system to records."""
    for measure, title in MEASURES.items():
        means = [summarise(records, measure) for records in results.values()]
        print(f"\n{title + ', %':42s}" + "".join(f"{system:>24s}" for system in results))
        for name in (*FAMILIES, "mean"):
            cells = ("{:5.1f} [{:5.1f}, {:5.1f}]".format(*(100 * x for x in own[name])) for own in means)
            print(f"{name:42s}" + "".join(f"{cell:>24s}" for cell in cells))
    ended = (f"{system} {statistics.mean(record['ended'] for record in records):.1%}" for system, records in results.items())
    n = len(results["SFT, greedy"]) // len(FAMILIES)
    print(f"\nanswers that came to an end: {'; '.join(ended)}\nmean: of the families but story, each with the same weight. "
          "An interval without width does not see what did not occur:\n"
          f"{n} verdicts that agree leave room for {min(1, 3 / n):.0%} of others (rule of three)")


def print_failures(greedy, sampled):
    """The first wrong greedy answer of each family, and how often sampling loses what greedy decoding holds."""
    for family in FAMILIES:
        for record in [record for record in greedy if record["family"] == family and not record["correct"]][:1]:
            print(f"\n{family}, difficulty {record['difficulty']}: {record['prompt']}\n"
                  f"    answer:    {record['answer']!r}{'' if record['ended'] else ' (cut off)'}\n"
                  f"    reference: {record['reference']!r}")
    pairs = [(one["correct"], other["correct"]) for one, other in zip(greedy, sampled)]
    print(f"\nof {len(pairs)} tasks {pairs.count((True, False))} are right greedily and wrong sampled, "
          f"{pairs.count((False, True))} the other way round")


def draw_families(ax, results):
    """Exact match of each family and the mean as bars with intervals, a colour a system."""
    names = [*FAMILIES, "mean"]
    for i, (system, records) in enumerate(results.items()):
        mean, low, high = (100 * np.array(own) for own in zip(*map(summarise(records).get, names)))
        bars = ax.bar(np.arange(len(names)) + 0.21 * (i - 1.5), mean, 0.2, color=SYSTEMS[system], label=system,
                      yerr=np.maximum(0, (mean - low, high - mean)), error_kw=dict(linewidth=1.2, capsize=2))
        if system.startswith("base"):  # a bar of 0 cannot be seen
            ax.bar_label(bars, fmt="%.0f", fontsize=10)
    ax.set(ylabel="exact match (%)", xlabel="task family", ylim=(0, 104), xticks=range(len(names)), xticklabels=names)
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.13), ncols=4)


def share_correct(records, family, difficulty):
    """Exact match in percent of one family and difficulty; nan for none."""
    own = [record["correct"] for record in records if (record["family"], record["difficulty"]) == (family, difficulty)]
    return 100 * statistics.mean(own) if own else float("nan")


def main(config):
    base, sft = load_both(config)
    tasks = held_out_tasks(config.n_tasks, config.seed)
    prompts, results = [task.prompt for task in tasks], {}
    order = random.Random(config.seed).sample(range(len(tasks)), len(tasks))
    before = {i: tasks[other] for i, other in zip(order, order[-1:] + order)}  # another task, with its right answer
    second = [[*task_conversation(before[i]), {"role": "user", "content": prompt}] for i, prompt in enumerate(prompts)]
    for system, model, questions, temperature in zip(
            SYSTEMS, (base, sft, sft, sft), (prompts, prompts, prompts, second), (0.0, 0.0, config.temperature, 0.0)):
        results[system] = judge(tasks, answer(*model, questions, temperature, config.n_new, seed=config.seed))
    greedy, command = results["SFT, greedy"], command_line(__file__, config)
    print_tables(results)
    print_failures(greedy, results["SFT, sampled"])

    fig, ax = plt.subplots(figsize=(10, 4.6))
    draw_families(ax, results)
    print(save_figure(
        fig, figure_path(__file__, "evaluation", config.quick), title="What fine-tuning has taught",
        caption=f"Share of right answers to {config.n_tasks} held-out tasks of each family, as the verifier sees it, with "
                f"95 % bootstrap intervals; sampled at temperature {config.temperature:g}; second question: greedily, after "
                "another task and its right answer. mean: of the families but story, each with the same weight. A whisker "
                "without length: all verdicts were the same.", command=command))
    fig, ax = plt.subplots(figsize=(8, 4.8))
    shares = [[share_correct(greedy, family, difficulty) for difficulty in DIFFICULTIES] for family in FAMILIES]
    image = heatmap(ax, shares, xlabel="difficulty", ylabel="", xticks=DIFFICULTIES, yticks=list(FAMILIES), fmt="{:.0f}",
                    vmin=0, vmax=100)
    fig.colorbar(image, ax=ax, label="exact match (%)")
    print(save_figure(
        fig, figure_path(__file__, "evaluation_difficulty", config.quick), title="Where the fine-tuned model gives out",
        caption=f"Share of right greedy answers of the fine-tuned model by family and difficulty: {len(greedy):,} held-out "
                f"tasks, {len(greedy) / len(FAMILIES) / len(DIFFICULTIES):.0f} in a cell.", command=command))
    lines = (json.dumps({"system": system, "before": [before[i].prompt] * (system == "SFT, second question"), **record})
             for system, records in results.items() for i, record in enumerate(records))
    path = figure_path(__file__, "evaluation", config.quick).with_name("answers.jsonl")
    write_atomically(path, ("\n".join(lines) + "\n").encode("utf-8"))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
