"""Lesson 6.4 - evaluation: a model answers held-out tasks, and every answer gets its verdict.

Greedy decoding shows what the model holds for most probable, sampling at temperature 1 what it would say: a model that is
right greedily and wrong when sampled is unsure. Both are batched with lesson 3.4's cache, the longest prompts together. A
greedy answer does not depend on its neighbours in the batch; a sampled one does, through the draws, and on the seed.
"""

import statistics

import torch

from part_0.cli import InputError
from part_3.generate import generate
from part_6.metrics import bootstrap_interval, rouge_l, token_f1
from part_6.prompt_template import END, decode_answer, encode_prompt
from part_6.task_families import EXACT, FAMILIES
from part_6.tasks import make_tasks, verify


def held_out_tasks(n, seed=0):
    """`n` tasks of the test split of each family, no prompt twice. InputError where there are fewer."""
    try:
        return [task for family in FAMILIES for task in make_tasks("test", n, seed, (family,), distinct=True)]
    except ValueError as error:
        raise InputError(f"--n_tasks {n}: {error}") from None


def answer(model, tokenizer, prompts, temperature=0.0, n_new=80, batch_size=256, seed=0):
    """A model's answers, in order: a list of (text, whether it came to an end token).

    prompts: texts of a user, or conversations that end with one; temperature: 0 for greedy; n_new: most tokens of an answer,
    the end token included. InputError where the model has a table of positions and a prompt and n_new are longer than it.
    """
    device, config, end = model.head.weight.device, model.config, tokenizer.special_ids[END]
    generator = torch.Generator(device).manual_seed(seed)
    ids = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))  # so that prompts of one batch need little padding
    if order and config.positions in ("learned", "sinusoidal") and len(ids[order[0]]) + n_new - 1 > config.block_size:
        raise InputError(f"a prompt of {len(ids[order[0]])} tokens and an answer of {n_new} do not fit into the model's "
                         f"{config.block_size} positions")
    answers = [None] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        rows = generate(model, [ids[i] for i in chosen], n_new, temperature=temperature, generator=generator,
                        stop_ids=tuple(tokenizer.special_ids.values()))  # a role's token, too, ends what is said
        for i, row in zip(chosen, rows):
            answers[i] = decode_answer(row.tolist(), tokenizer), end in row.tolist()
    return answers


def judge(tasks, answers):
    """A record of each task and its answer: a list of dicts, as they go into a file. ValueError for more of one than the
    other.

    correct: the verifier's verdict, only for an answer that ended; token_f1, rouge_l: against the reference, which for write
    and story is one of many right answers.
    """
    return [{**task._asdict(), "reference": task.answer, "answer": text, "ended": ended,
             "correct": ended and verify(task, text), "token_f1": token_f1(text, task.answer),
             "rouge_l": rouge_l(text, task.answer)} for task, (text, ended) in zip(tasks, answers, strict=True)]


def summarise(records, measure="correct"):
    """Means with 95 % intervals of a measure: a dict of "mean" and each family that is there to (mean, low, high).

    "mean" is over the exact families, all with the same weight; it is missing where none of them is there.
    """
    values = {}
    for record in records:
        values.setdefault(record["family"], []).append(float(record[measure]))
    groups = {"mean": [own for family, own in values.items() if family in EXACT],
              **{family: [own] for family, own in values.items()}}
    return {name: (statistics.mean(map(statistics.mean, group)), *bootstrap_interval(group))
            for name, group in groups.items() if group}
