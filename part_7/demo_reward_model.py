"""Lesson 7.2 - does the reward model read the prompt?

Six held-out prompts, which differ from the first in one word or in four, and to each its own answer: the same sentences with
that prompt's words. Every answer is scored under every prompt. Then, for three answers to the first prompt, each word is
replaced by the others of its kind, or left out where it has no kind, and the reward scored again (occlusion). What to see:
left, whether in each column the own answer, on the diagonal, has the highest reward, and which words are read less well than
others; right, which words hold the reward up and which pull it down.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import random
from dataclasses import dataclass
from typing import ClassVar

import torch

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device
from part_0.plotting import DIVERGING, figure_path, heatmap, plt, save_figure
from part_2.tinyworld import (ANIMALS, COLOURS, CONTAINERS, MOODS, NAMES, OPENINGS, PLACES, THINGS, fill, parse_sentence,
                              split_sentences)
from part_6.prompt_template import END
from part_6.tasks import make_tasks
from part_7.gold_utility import gold_utility
from part_7.preference_data import Response
from part_7.reward_config import RUNS
from part_7.reward_model import load_reward_model
from part_7.scoring import encode_response, score, score_responses

SLOTS, START = ("name", "colour", "thing", "place"), "Tell a story. "
CHANGES = {"person": (0,), "colour": (1,), "thing": (2,), "place": (3,), "all four": (0, 1, 2, 3)}  # of the first prompt
IN_PLACE = ("{name} met {other} in the {place}.", "{name} found a {container} in the {place}.",
            "{name} fed a {animal} in the {place}.")
KINDS = (NAMES, COLOURS, THINGS, PLACES, CONTAINERS, ANIMALS, sum(MOODS.values(), ()))
N_POOL = 3000  # prompts of the test split among which those that differ in one word are looked for


@dataclass(frozen=True)
class Config:
    checkpoint: str = option(str(RUNS / "reward_model" / "best.pt"), "a checkpoint of part_7/train_reward_model.py")
    n_sets: int = option(50, "sets of six prompts; the first is drawn, all are counted")
    seed: int = option(0, "seed of prompts and answers")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(checkpoint=str(RUNS / "quick" / "best.pt"), n_sets=3)

    def __post_init__(self):
        check_positive(self, "n_sets")


def prompt_sets(n, seed):
    """`n` sets: (tasks, answers, words), six of each, and the first answer with a sad end; from the first task the others
    differ in the order of CHANGES."""
    rng, sets, pool = random.Random(seed), [], {}
    for task in make_tasks("test", N_POOL, seed, ("story",)):
        slots = parse_sentence(task.prompt.removeprefix(START))[1]
        pool[tuple(slots[slot] for slot in SLOTS)] = task
    for first in rng.sample(sorted(pool), len(pool)):
        found = [[words for words in pool if tuple(i for i in range(4) if words[i] != first[i]) == change]
                 for change in CHANGES.values()]
        if all(found):
            six, opening, place = [first, *map(rng.choice, found)], rng.choice(OPENINGS), rng.choice(IN_PLACE)
            other = rng.choice([name for name in NAMES if name not in {words[0] for words in six}])
            slots, drawn = [dict(zip(SLOTS, words), other=other) for words in six], len(sets)
            happy, sad = (f"{{name}} looked at the {{colour}} {{thing}}. {place} {{name}} was {{{tone}}}."
                          for tone in ("happy", "sad"))
            answers = [fill(happy, random.Random(drawn), **own) for own in slots]  # the same draws for all six
            tasks = [pool[words]._replace(prompt=START + opening.format(**own)) for words, own in zip(six, slots)]
            sets.append((tasks, answers, six, fill(sad, random.Random(drawn), **slots[0])))
        if len(sets) == n:
            return sets
    raise InputError(f"--n_sets {n}: in {N_POOL} prompts there are only {len(sets)} such sets")


def score_matrix(model, tokenizer, tasks, answers):
    """The reward of each answer (row) under each task's prompt (column): (n, n)."""
    cells = [(task.prompt, Response(text)) for text in answers for task in tasks]
    return score_responses(model, tokenizer, *zip(*cells)).view(len(answers), len(tasks))


def occlusions(text):
    """For each word of a text, and the end token, what it is compared with: a list of (word, list of Response).

    A word that has a kind: each other word of it that the text does not hold. One that has none: the text without it.
    """
    words, variants = text.split(), []
    bare = [word.removesuffix(".") for word in words]
    for i, word in enumerate(bare):
        kind = next((kind for kind in KINDS if word in kind), None)
        texts = [[*words[:i], other + words[i][len(word):], *words[i + 1:]]
                 for other in (kind or ("",)) if other not in bare]
        variants.append((words[i], [Response(" ".join(changed).replace("  ", " ").replace(" .", ".")) for changed in texts]))
    return [*variants, (END, [Response(text, ended=False)])]


def falls(value, task, text):
    """How far value(task, responses), a tensor, falls without each word: (n_words + 1,), the mean over what replaces it."""
    whole = value(task, [Response(text)])
    return torch.cat([whole - value(task, variants).mean() for _, variants in occlusions(text)])


def draw_words(ax, titles, texts, shares, limit):
    """Each answer as lines of words on the colour of what they hold; a heading above each. shares: of `falls`."""
    rows, y = [], 0
    for title, text, own in zip(titles, texts, shares):
        ax.text(-0.45, y + 0.15, title, va="center", fontweight="bold")
        lines, left = [sentence.split() for sentence in split_sentences(text)], iter(own.tolist())
        lines[-1].append(END)
        rows += [[float("nan")] * 6, *([next(left) for _ in line] + [float("nan")] * (6 - len(line)) for line in lines)]
        for row, line in enumerate(lines, y + 1):
            for column, word in enumerate(line):
                dark = abs(rows[row][column]) > 0.6 * limit
                ax.text(column, row, f"{word}\n{rows[row][column]:+.2f}", ha="center", va="center", fontsize=10.5,
                        color="white" if dark else "black")
        y += 1 + len(lines)
    image = heatmap(ax, rows, xlabel="", ylabel="", xticks=[], yticks=[], cmap=DIVERGING, vmin=-limit, vmax=limit)
    ax.spines[:].set_visible(False)
    return image


def main(config):
    device = pick_device(config.device)
    model, tokenizer, _ = load_reward_model(config.checkpoint, device)
    sets = prompt_sets(config.n_sets, config.seed)
    matrices = torch.stack([score_matrix(model, tokenizer, tasks, answers) for tasks, answers, *_ in sets])  # (n, 6, 6)
    tasks, answers, words, sad = sets[0]
    print(f"reward model: {model.n_params():,} weights, pooling {model.pooling}, causal {model.causal}\n")
    for task, answer, rewards in zip(tasks, answers, matrices[0]):
        print(f"{task.prompt}\n    {answer}\n    rewards under the six prompts: {'  '.join(f'{r:+.2f}' for r in rewards)}")

    own = matrices.diagonal(dim1=1, dim2=2)  # (n, 6)
    best = own.ge(matrices.amax(1)).float().mean().item()
    print(f"\nown answer has the highest reward of six: {best:.1%} of {own.numel()} prompts (chance: {1 / 6:.1%})")
    for k, change in enumerate(CHANGES, 1):  # own answer against the other's, under both prompts
        lead = torch.cat((own[:, 0] - matrices[:, k, 0], own[:, k] - matrices[:, 0, k]))
        golds = [gold_utility(tasks[i], answers[i]) - gold_utility(tasks[i], answers[k - i])
                 for tasks, answers, *_ in sets for i in (0, k)]
        print(f"    {change:9s} differs: own answer ahead in {(lead > 0).float().mean():6.1%} of {len(lead)}, by "
              f"{lead.mean():.2f} on average (utility: {sum(golds) / len(golds):.2f})")

    def reward(task, responses):
        return score_responses(model, tokenizer, [task.prompt] * len(responses), responses)

    def utility(task, responses):
        return torch.tensor([gold_utility(task, *one) for one in responses])

    texts = {"own answer": answers[0], f"says {words[3][2]}, not {words[0][2]}": answers[3], "own answer, sad end": sad}
    shares, golds = ([falls(value, tasks[0], text) for text in texts.values()] for value in (reward, utility))
    print(f"\nwhat each word holds (fall of the reward | of the utility without it), under: {tasks[0].prompt}")
    for text, *columns in zip(texts.values(), shares, golds):
        print("    " + "  ".join(f"{word} {r:+.2f}|{u:+.2f}" for (word, _), r, u in zip(occlusions(text), *columns)))

    rows = [encode_response(task.prompt, Response(text), tokenizer) for task in tasks for text in answers]
    rows.append(encode_response(tasks[0].prompt, Response(" ".join(answers)), tokenizer))  # a long one
    gap = (score(model, rows) - torch.cat([score(model, [row]) for row in rows])).abs().max()
    lengths = [len(ids) for ids, _ in rows]
    print(f"padding: {len(rows)} rewards of {min(lengths)} to {max(lengths)} tokens, alone and padded to {max(lengths)}, "
          f"differ by at most {gap:.1e}")

    fig, (ax, ax_words) = plt.subplots(1, 2, figsize=(10.6, 5.6), width_ratios=(5, 7))
    labels = ["as it is", *(words[k][k - 1] for k in range(1, 5)), "all 4"]
    heatmap(ax, matrices[0], xlabel="what the prompt says instead", ylabel="what the answer says instead", xticks=labels,
            yticks=labels, fmt="{:+.1f}")
    ax.set_title(f"reward under six prompts\n{tasks[0].prompt.removeprefix(START)}", parse_math=False)
    titles = [f"{name}: reward {reward(tasks[0], [Response(text)]).item():+.2f}" for name, text in texts.items()]
    image = draw_words(ax_words, titles, texts.values(), shares, max(part.abs().max() for part in shares).item())
    ax_words.set_title("what each word holds, under the prompt as it is")
    fig.colorbar(image, ax=ax_words, label="fall of the reward without the word", shrink=0.7)
    print(save_figure(
        fig, figure_path(__file__, "reward_model", config.quick), title="Does the reward model read the prompt?",
        caption="Left: rewards of six answers under six held-out prompts; prompts and answers differ from the first in the "
                "words named, and an answer fits the prompt of its number. 1 is the spread of the policy's own stories. Of "
                f"{own.numel()} such prompts {best:.0%} give their own answer the highest reward of the six. Right: three "
                "answers to the prompt as it is. Below each word, the fall of the reward when other words of its kind "
                "stand there (mean) or, for a word without a kind, when it is left out.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
