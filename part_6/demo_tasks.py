"""Lesson 6.1 - what is asked, what is a right answer, and what makes a task harder?

Prints of each family an easy and a hard task, the split of its key, and a wrong answer that differs from the reference by a
word or two: the verifier takes the one and refuses the other. Then how many different keys a family has in each split. What
to see in the figure: harder tasks are longer, in the question, in the answer, or in both; families that show their steps pay
for them in tokens of the answer.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import random
import statistics
from dataclasses import dataclass
from typing import ClassVar

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.plotting import BLUE, ORANGE, figure_path, plt, save_figure
from part_2.tinyworld_text import tinyworld
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_6.chat_data import turn
from part_6.prompt_template import chat_tokenizer, encode_chat
from part_6.task_families import DIFFICULTIES, FAMILIES
from part_6.tasks import SPLITS, corrupt, make_tasks, split_of, verify


@dataclass(frozen=True)
class Config:
    n_tasks: int = option(300, "tasks of each family and difficulty")
    n_draws: int = option(10_000, "tasks of each family that are drawn, whatever their split, to count keys")
    n_characters: int = option(1_000_000, "of tinyworld, from which the tokenizer learns")
    seed: int = option(0, "seed of the tasks")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_tasks=5, n_draws=200, n_characters=20_000)

    def __post_init__(self):
        check_positive(self, "n_tasks", "n_draws", "n_characters")


def show(family, difficulty, seed):
    """Print a test task, the split of its key, and what the verifier says to its reference and to a corrupted answer."""
    [task] = make_tasks("test", 1, seed, (family,), (difficulty,))
    wrong = corrupt(task, random.Random(seed))
    print(f"{family} {difficulty} ({split_of(task.key)})  {task.prompt}")
    for answer in (task.answer, wrong):
        print(f"    {'right' if verify(task, answer) else 'WRONG'}  {answer}")


def count_tokens(tasks, tokenizer):
    """The mean number of tokens of the prompts' and of the answers' side of the template: (float, float)."""
    learnt = [encode_chat(turn(task.prompt, task.answer), tokenizer)[1] for task in tasks]
    return statistics.mean(len(row) - sum(row) for row in learnt), statistics.mean(map(sum, learnt))


def main(config):
    for family in FAMILIES:
        for difficulty in (DIFFICULTIES[0], DIFFICULTIES[-1]):
            show(family, difficulty, config.seed)

    print(f"different keys among {config.n_draws:,} tasks of a family: {', '.join(SPLITS)}")
    for family, make in FAMILIES.items():
        rng = random.Random(config.seed)
        keys = {make(rng, DIFFICULTIES[i % len(DIFFICULTIES)]).key for i in range(config.n_draws)}
        splits = [split_of(key) for key in keys]
        print(f"    {family:8s}" + "".join(f"{splits.count(split):7,d}" for split in SPLITS))

    tokenizer = chat_tokenizer(BPETokenizer(train_bpe(count_chunks([tinyworld(config.n_characters)]), 4096)[1]))
    fig, axes = plt.subplots(2, 4, figsize=(11, 6), sharex=True, sharey=True)
    totals = {}
    for ax, family in zip(axes.flat, FAMILIES):
        n_prompt, n_answer = zip(*(count_tokens(make_tasks("train", config.n_tasks, config.seed, (family,), (difficulty,)),
                                                tokenizer) for difficulty in DIFFICULTIES))
        ax.bar(DIFFICULTIES, n_prompt, color=BLUE, label="question")
        ax.bar(DIFFICULTIES, n_answer, bottom=n_prompt, color=ORANGE, label="answer")
        ax.set(title=family, xticks=DIFFICULTIES)
        totals[family] = [question + answer for question, answer in zip(n_prompt, n_answer)]
        print(f"tokens of {family:8s} question " + " ".join(f"{n:5.1f}" for n in n_prompt)
              + "   answer " + " ".join(f"{n:5.1f}" for n in n_answer))
    for ax in axes[:, 0]:
        ax.set_ylabel("tokens (mean)")
    for ax in axes[-1]:
        ax.set_xlabel("difficulty")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    growth = {family: values[-1] / values[0] for family, values in totals.items()}
    most, least = max(growth, key=growth.get), min(growth, key=growth.get)
    path = save_figure(
        fig, figure_path(__file__, "tasks", config.quick), title="Harder tasks are longer",
        caption=f"Mean tokens of question and answer with the template's, {config.n_tasks} tasks a bar. From difficulty "
                f"{DIFFICULTIES[0]} to {DIFFICULTIES[-1]} {most} grows most, {growth[most]:.1f} times, and {least} least, "
                f"{growth[least]:.1f} times. The longest are {max(totals, key=lambda family: totals[family][-1])}, with "
                f"{max(values[-1] for values in totals.values()):.0f} tokens at the highest difficulty.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
