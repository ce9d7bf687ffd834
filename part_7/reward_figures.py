"""Lesson 7.4 - the figures of a reward model: how often it prefers what the annotator did, and how it follows the truth."""

import random

import torch

from part_6.metrics import bootstrap_interval
from part_6.tasks import make_tasks
from part_7.gold_utility import consistency, gold_utility
from part_7.perturbations import PERTURBATIONS
from part_7.preference_data import SOURCES, make_pairs, sample_responses
from part_7.sanity_checks import correlation_within, rank_correlation, share_above
from part_7.scoring import score_responses

CLEAR = 0.5  # pairs whose utilities are further apart


def pair_rewards(model, tokenizer, pairs):
    """The rewards of the chosen and of the rejected answers: two (N,) tensors."""
    prompts = [pair.prompt for pair in pairs]
    return [score_responses(model, tokenizer, prompts, [getattr(pair, name) for pair in pairs])
            for name in ("chosen", "rejected")]


def pair_table(pairs, gaps, chosen, rejected, temperature):
    """A row for all pairs, each source, each family, and the clear pairs: a dict of name -> dict.

    gaps: utilities' differences, as of `Labelled`; chosen, rejected: (N,) rewards. accuracy: share of pairs in which the
    chosen answer has the higher reward; low, high: its 95 % interval, as if pairs were independent (those of one prompt
    share answers, so it is somewhat too narrow); agreement: share in which the truly better one has; consistency: the
    annotator's; n. Equal rewards count as wrong.
    """
    gaps, ahead = torch.tensor(gaps), chosen > rejected
    better, worse = torch.where(gaps > 0, chosen, rejected), torch.where(gaps > 0, rejected, chosen)
    groups = {"all": lambda pair, gap: True,
              **{source: lambda pair, gap, source=source: pair.source == source for source in SOURCES},
              "clear": lambda pair, gap: abs(gap) > CLEAR,
              "clear policy": lambda pair, gap: pair.source == "policy" and abs(gap) > CLEAR,
              **{family: lambda pair, gap, family=family: pair.family == family
                 for family in dict.fromkeys(pair.family for pair in pairs)}}
    table = {}
    for name, belongs in groups.items():
        own = torch.tensor([belongs(pair, gap) for pair, gap in zip(pairs, gaps.tolist())])
        if own.any():
            low, high = bootstrap_interval([ahead[own].double().tolist()])
            table[name] = {"accuracy": ahead[own].double().mean().item(), "low": low, "high": high,
                           "agreement": (better > worse)[own].double().mean().item(),
                           "consistency": consistency(gaps[own].tolist(), temperature), "n": int(own.sum())}
    return table


def sample_stories(policy, tokenizer, n_prompts, n_samples, seed, split="test"):
    """Stories of the policy for prompts of a split: (tasks, responses, utilities); responses a list of lists, utilities
    (n_prompts, n_samples)."""
    tasks = make_tasks(split, n_prompts, seed, ("story",), distinct=True)
    responses = sample_responses(policy, tokenizer, tasks, n_samples, seed)
    utilities = [[gold_utility(task, *one) for one in own] for task, own in zip(tasks, responses)]
    return tasks, responses, torch.tensor(utilities)


def score_stories(model, tokenizer, tasks, responses):
    """The rewards of `sample_stories`' responses: (n_prompts, n_samples)."""
    prompts = [task.prompt for task, own in zip(tasks, responses) for _ in own]
    return score_responses(model, tokenizer, prompts, [one for own in responses for one in own]).view(len(tasks), -1)


def correlations(rewards, utilities, responses):
    """spearman: rank correlation of reward and utility; length_correlation: of reward and words at fixed utility."""
    words = [len(one.text.split()) for own in responses for one in own]
    utilities = utilities.flatten().double().round(decimals=6)
    return {"spearman": rank_correlation(rewards.flatten(), utilities),
            "length_correlation": correlation_within(rewards.flatten(), words, utilities)}


def perturbation_table(model, tokenizer, tasks, responses, utilities, seed):
    """How good answers fare when spoilt: a dict of perturbation -> {"share": where the good one has the higher reward,
    "low", "high": its 95 % interval, "drop": its mean lead, "gold_drop": the same in utility, "n"}.

    The good answer to each prompt is the best of its samples; another prompt is the next one. Counted is what the
    perturbation makes worse in truth; one that makes nothing worse has no row.
    """
    rng, table = random.Random(seed), {}
    best = [own[i] for own, i in zip(responses, utilities.argmax(1).tolist())]
    prompts = [task.prompt for task in tasks]
    good = score_responses(model, tokenizer, prompts, best)
    for name, perturb in PERTURBATIONS.items():
        spoilt = [perturb(prompt, one.text, prompts[(i + 1) % len(prompts)], rng)
                  for i, (prompt, one) in enumerate(zip(prompts, best))]
        falls = {i: utilities[i].max().item() - gold_utility(tasks[i]._replace(prompt=one[0]), *one[1])
                 for i, one in enumerate(spoilt) if one is not None}
        kept = [i for i, fall in falls.items() if fall > 1e-6]
        if not kept:
            continue
        rewards = score_responses(model, tokenizer, *zip(*(spoilt[i] for i in kept)))
        wins = ((good[kept] > rewards).double() + 0.5 * (good[kept] == rewards).double()).tolist()
        low, high = bootstrap_interval([wins])
        table[name] = {"share": share_above(good[kept], rewards), "low": low, "high": high,
                       "drop": (good[kept] - rewards).mean().item(),
                       "gold_drop": sum(falls[i] for i in kept) / len(kept), "n": len(kept)}
    return table


def final_figures(model, tokenizer, policy, n_test, temperature, seed):
    """What summary.json says of a reward model, on pairs and stories of the test split: a flat dict of floats.

    policy: the model whose samples are judged; n_test: story prompts, and other tasks; temperature: the annotator's.
    """
    test = make_pairs(policy, tokenizer, "test", n_test, n_test, temperature, seed)
    table = pair_table(test.pairs, test.gaps, *pair_rewards(model, tokenizer, test.pairs), temperature)
    tasks, responses, utilities = sample_stories(policy, tokenizer, n_test, 4, seed + 1)
    rewards = score_stories(model, tokenizer, tasks, responses)
    spoilt = perturbation_table(model, tokenizer, tasks, responses, utilities, seed)
    figures = {"pairwise_accuracy": table["all"]["accuracy"],
               **{f"pairwise_accuracy_{name}": row["accuracy"] for name, row in table.items() if name != "all"},
               **{f"agreement_{name}": row["agreement"] for name, row in table.items()},
               **{f"consistency_{name}": table[name]["consistency"] for name in ("all", "policy")},
               **correlations(rewards, utilities, responses),
               **{f"above_{name}": row["share"] for name, row in spoilt.items()}}
    return {name.replace(" ", "_"): value for name, value in figures.items()}
