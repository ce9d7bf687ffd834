"""Lesson 8.4 - what a policy has gained: its answers to held-out prompts, beside those of the model it began as.

    KL       sum over an answer's tokens of KL(pi(. | s_t) || pi_ref(. | s_t))      the same expectation as that of the log
                                                                                   ratio's sum, with less variance
    win      the share of prompts whose sample has the higher gold utility than the reference's, ties counting half

Samples are drawn at temperature 1, one a prompt; exact match is greedy.
"""

import statistics
from typing import NamedTuple

import torch

from part_6.collator import shift
from part_6.evaluation import answer, judge, summarise
from part_6.metrics import bootstrap_interval
from part_6.prompt_template import decode_answer, encode_chat
from part_6.sft_data import task_conversation
from part_6.sft_scores import answer_figures
from part_6.tasks import make_tasks, verify
from part_7.gold_utility import gold_utility
from part_8.policy import distributions, divergences
from part_8.rewards import score_rollout
from part_8.rollout import collect


class Answers(NamedTuple):
    """Samples of a policy: texts, list of str; ended, correct: list of bool; rewards, kl, lengths: lists of float; gold:
    list of float. correct and gold are None for prompts that are no tasks."""

    texts: list
    ended: list
    rewards: list
    kl: list
    lengths: list
    correct: list | None
    gold: list | None


@torch.no_grad()
def sample_answers(policy, reference, reward_model, tokenizer, prompts, n_new, stop_ids, seed, batch_size=256):
    """The policy's Answers to prompts at temperature 1. prompts: list of Prompt; reward_model: RewardModel, or None for
    rewards of nan; the others as of `collect`."""
    generator = torch.Generator(policy.head.weight.device).manual_seed(seed)
    columns = {"texts": [], "ended": [], "rewards": [], "kl": [], "lengths": []}
    for start in range(0, len(prompts), batch_size):
        rollout = collect(policy, [one.ids for one in prompts[start:start + batch_size]], n_new, stop_ids,
                          generator=generator)
        own, ref = (distributions(model(rollout.tokens)) for model in (policy, reference))
        columns["texts"] += [decode_answer(ids, tokenizer) for ids in rollout.answers()]
        columns["ended"] += rollout.ended.tolist()
        columns["rewards"] += (torch.full((len(rollout.ended),), torch.nan) if reward_model is None
                               else score_rollout(reward_model, rollout)).tolist()
        columns["kl"] += torch.where(rollout.mask, divergences(own, ref), 0.0).sum(1).tolist()
        columns["lengths"] += rollout.mask.sum(1).float().tolist()
    if prompts[0].task is None:
        return Answers(**columns, correct=None, gold=None)
    pairs = list(zip(prompts, columns["texts"], columns["ended"]))
    return Answers(**columns, correct=[ended and verify(one.task, text) for one, text, ended in pairs],
                   gold=[gold_utility(one.task, text, ended) for one, text, ended in pairs])


def answer_scores(answers, when, others=None):
    """Means of Answers: a dict of reward, kl, length, ended and, of tasks, gold and correct, each with _<when> behind.

    others: Answers of the reference to the same prompts; then win_rate and gold_gain, each a mean with its 95 % interval.
    """
    scores = {f"{name}_{when}": statistics.fmean(column) for name, column in
              (("reward", answers.rewards), ("kl", answers.kl), ("length", answers.lengths), ("ended", answers.ended),
               ("gold", answers.gold), ("correct", answers.correct)) if column is not None}
    if others is not None and answers.gold is not None:
        gains = [one - other for one, other in zip(answers.gold, others.gold, strict=True)]
        wins = [(gain > 1e-9) + 0.5 * (abs(gain) <= 1e-9) for gain in gains]
        for name, column in (("win_rate", wins), ("gold_gain", gains)):
            scores |= dict(zip((name, f"{name}_low", f"{name}_high"),
                               (statistics.fmean(column), *bootstrap_interval([column]))))
    return scores


def family_scores(answers, prompts, when):
    """{"correct_<when>_<family>": share of right samples} where the prompts are tasks of several families."""
    groups = {}
    for prompt, correct in zip(prompts, answers.correct or (), strict=answers.correct is not None):
        groups.setdefault(prompt.task.family, []).append(correct)
    return {f"correct_{when}_{family}": statistics.fmean(own) for family, own in groups.items()} if len(groups) > 1 else {}


def exact_scores(policy, tokenizer, tasks, when):
    """The share of tasks answered rightly, greedily: {"exact_match_<when>": mean over the exact families, and with each
    family's name behind}."""
    records = judge(tasks, answer(policy, tokenizer, [task.prompt for task in tasks]))
    return {f"exact_match_{when}" + ("" if family == "mean" else f"_{family}"): mean
            for family, (mean, *_) in summarise(records).items()}


def reference_loss(policy, tokenizer, are_tasks, n=480):
    """val_loss and bits_per_byte on the reference answers to validation tasks; None each where the prompts are no tasks, or
    where such do not fit into the model's table of positions."""
    config, tasks = policy.config, make_tasks("val", n) if are_tasks else []
    examples = [shift(*encode_chat(task_conversation(task), tokenizer)) for task in tasks]
    longest = max((len(inputs) for inputs, _ in examples), default=0)
    if not examples or (config.positions in ("learned", "sinusoidal") and longest > config.block_size):
        return {"val_loss": None, "bits_per_byte": None}
    figures = answer_figures(policy, tokenizer, examples, longest)
    return {name: figures[name] for name in ("val_loss", "bits_per_byte")}
