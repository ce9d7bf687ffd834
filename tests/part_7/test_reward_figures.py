"""Lesson 7.4: the tables of a reward model, against made-up rewards and models whose verdict is known."""

import math
import random
import zlib

import pytest
import torch
from torch import nn

from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_6.prompt_template import END, chat_tokenizer, decode_answer
from part_6.task_families import EXACT, Task
from part_6.tasks import make_tasks, verify
from part_7.gold_utility import gold_utility
from part_7.perturbations import PERTURBATIONS
from part_7.preference_data import Pair, Response, make_pairs, sample_responses
from part_7.reward_figures import (
    correlations,
    final_figures,
    pair_rewards,
    pair_table,
    perturbation_table,
    sample_stories,
    score_stories,
)
from part_7.reward_model import RewardModel
from tests.part_6.tiny_base import WORLD

TOKENIZER = chat_tokenizer(BPETokenizer(train_bpe(count_chunks([WORLD]), 400, 1)[1]))
TASKS = make_tasks("val", 60, 3, ("story",), distinct=True)
GOOD = [[Response(task.answer)] for task in TASKS]
UTILITIES = torch.tensor([[gold_utility(task, task.answer)] for task in TASKS])


class Judge(nn.Module):
    """A reward model that reads prompt and answer back from the tokens, and asks `rule(prompt, text, ended)`."""

    def __init__(self, rule):
        super().__init__()
        self.rule, self.score = rule, nn.Linear(1, 1)

    def forward(self, tokens, positions, answer):
        rewards, end = [], TOKENIZER.special_ids[END]
        for row, at, own in zip(tokens, positions, answer):
            before, said = row[(at >= 0) & ~own].tolist(), row[own].tolist()
            rewards.append(self.rule(TOKENIZER.decode(before[1:before.index(end)]).removeprefix(" "),
                                     decode_answer(said, TOKENIZER), end in said))
        return torch.tensor(rewards)


def truth(prompt, text, ended):
    return gold_utility(Task("story", 1, prompt, "", ""), text, ended)


def length(prompt, text, ended):
    return float(len(text.split()))


def made_up(*rows):
    """Pairs, gaps, chosen and rejected rewards from rows of (source, family, gap, chosen, rejected)."""
    pairs = [Pair([], Response("a"), Response("b"), source, family) for source, family, *_ in rows]
    _, _, gaps, chosen, rejected = zip(*rows)
    return pairs, list(gaps), torch.tensor(chosen), torch.tensor(rejected)


def test_the_table_of_pairs_by_hand():
    table = pair_table(*made_up(
        ("policy", "story", 0.4, 2.0, 1.0),  # right
        ("policy", "story", -0.4, 2.0, 1.0),  # the annotator erred, and the model with him: it disagrees with the truth
        ("policy", "add", 2.0, 0.0, 3.0),  # wrong
        ("swapped", "story", -2.0, -1.0, 0.5),  # the annotator erred, the model did not
        ("swapped", "story", 2.0, 1.0, 1.0)), 0.5)  # a tie predicts nothing: wrong in both
    n = {name: row["n"] for name, row in table.items()}
    assert n == {"all": 5, "policy": 3, "swapped": 2, "clear": 3, "clear policy": 1, "story": 4, "add": 1}
    assert list(table)[0] == "all"
    accuracy = {name: row["accuracy"] for name, row in table.items()}
    assert accuracy == pytest.approx({"all": 2 / 5, "policy": 2 / 3, "swapped": 0, "clear": 0, "clear policy": 0,
                                      "story": 2 / 4, "add": 0})
    agreement = {name: row["agreement"] for name, row in table.items()}
    assert agreement == pytest.approx({"all": 2 / 5, "policy": 1 / 3, "swapped": 1 / 2, "clear": 1 / 3, "clear policy": 0,
                                       "story": 2 / 4, "add": 0})
    near, far = 1 / (1 + math.exp(-0.8)), 1 / (1 + math.exp(-4))  # gaps 0.4 and 2 at temperature 0.5
    assert {name: row["consistency"] for name, row in table.items()} == pytest.approx(
        {"all": (2 * near + 3 * far) / 5, "policy": (2 * near + far) / 3, "swapped": far, "clear": far, "clear policy": far,
         "story": (2 * near + 2 * far) / 4, "add": far})


def test_a_gap_of_a_half_is_not_clear_whichever_way_it_goes():
    table = pair_table(*made_up(*(("corrupted", "sort", gap, 1.0, 0.0) for gap in (0.5, -0.5, 0.52, -0.52))), 1.0)
    assert table["clear"]["n"] == 2 and "clear policy" not in table


def test_the_interval_of_an_accuracy_is_about_that_of_a_share():
    rng = random.Random(0)
    rows = [("reference", "where", 1.0, float(rng.random() < 0.8), 0.5) for _ in range(400)]
    rows += [("policy", "where", 1.0, 0.0, 0.5)] * 400
    row = pair_table(*made_up(*rows), 1.0)["reference"]
    half = 1.96 * math.sqrt(row["accuracy"] * (1 - row["accuracy"]) / 400)
    assert row["low"] == pytest.approx(row["accuracy"] - half, abs=0.01)
    assert row["high"] == pytest.approx(row["accuracy"] + half, abs=0.01)


def test_the_rewards_of_pairs_are_the_chosen_ones_and_the_rejected_ones():
    pairs = [Pair([{"role": "user", "content": "Sort: red cup"}], Response("cup red"), Response("red", False)),
             Pair([{"role": "user", "content": "Sort: pen"}], Response(""), Response("a b c"))]
    chosen, rejected = pair_rewards(Judge(length), TOKENIZER, pairs)
    assert chosen.tolist() == [2, 0] and rejected.tolist() == [1, 3]
    ends = pair_rewards(Judge(lambda prompt, text, ended: float(ended) + 10 * len(prompt)), TOKENIZER, pairs)
    assert [side.tolist() for side in ends] == [[131, 91], [130, 91]]


def test_a_model_that_is_the_truth_puts_every_good_story_above_what_it_has_become():
    table = perturbation_table(Judge(truth), TOKENIZER, TASKS, GOOD, UTILITIES, 0)
    assert list(table) == list(PERTURBATIONS)
    for row in table.values():
        assert row["share"] == row["low"] == row["high"] == 1
        assert row["drop"] == pytest.approx(row["gold_drop"], abs=1e-5) and row["gold_drop"] > 0
    assert table["no end token"]["gold_drop"] == pytest.approx(3) and table["no end token"]["n"] == 60
    reversed_ = perturbation_table(Judge(lambda *said: -truth(*said)), TOKENIZER, TASKS, GOOD, UTILITIES, 0)
    assert all(row["share"] == 0 and row["drop"] == pytest.approx(-row["gold_drop"], abs=1e-5)
               for row in reversed_.values())


def test_a_model_that_counts_words_sees_what_changes_the_number_of_words():
    table = perturbation_table(Judge(length), TOKENIZER, TASKS, GOOD, UTILITIES, 0)
    words = [len(task.answer.split()) for task in TASKS]
    assert {name: table[name]["share"] for name in ("words shuffled", "another prompt", "no end token", "answer twice",
                                                    "last sentence twice", "cut off", "empty")} == {
        "words shuffled": 0.5, "another prompt": 0.5, "no end token": 0.5, "answer twice": 0, "last sentence twice": 0,
        "cut off": 1, "empty": 1}  # equal rewards count half
    assert table["no end token"]["low"] == table["no end token"]["high"] == 0.5
    assert table["cut off"]["drop"] == pytest.approx(1)
    assert table["answer twice"]["drop"] == pytest.approx(-sum(words) / 60)
    worse = [i for i, task in enumerate(TASKS) if UTILITIES[i] > truth(task.prompt, "", True) + 1e-6]
    assert table["empty"]["n"] == len(worse)
    assert table["empty"]["drop"] == pytest.approx(sum(words[i] for i in worse) / len(worse))


def test_the_story_that_is_spoilt_is_the_best_of_its_samples_and_goes_to_the_next_prompt():
    tasks = TASKS[:3]
    samples = [[Response("", True), Response(task.answer), Response(task.answer, False)] for task in tasks]
    utilities = torch.tensor([[gold_utility(task, *one) for one in own] for task, own in zip(tasks, samples)])
    asked = []

    def rule(prompt, text, ended):
        asked.append((prompt, text, ended))
        return 0.0

    perturbation_table(Judge(rule), TOKENIZER, tasks, samples, utilities, 0)
    prompts = [task.prompt for task in tasks]
    good = [(task.prompt, task.answer, True) for task in tasks]
    assert set(asked[:3]) == set(good)
    assert {prompt for prompt, _, _ in asked} == set(prompts)
    nexts = {(prompts[(i + 1) % 3], task.answer, True) for i, task in enumerate(tasks)
             if truth(prompts[(i + 1) % 3], task.answer, True) < truth(*good[i]) - 1e-6}
    assert nexts and set(asked) & {(prompt, text, True) for prompt in prompts for _, text, _ in good} == set(good) | nexts


def test_the_draws_of_the_perturbations_are_the_seed_s():
    same, again, others = (perturbation_table(Judge(lambda prompt, text, ended: float(text.count("glad"))), TOKENIZER, TASKS,
                                              GOOD, UTILITIES, seed) for seed in (0, 0, 1))
    assert same == again and same["happy word only"]["drop"] != others["happy word only"]["drop"]


def test_a_story_that_is_not_made_worse_is_not_counted():
    # "Ben was glad." suits the next prompt too, which is also about Ben; the other way round the thing is lost.
    tasks = [Task("story", 1, f"Tell a story. Ben took the red {thing} to the barn.", "", "") for thing in ("cup", "bell")]
    said = [[Response("Ben was glad.")], [Response("Ben liked the bell very much.")]]
    utilities = torch.tensor([[gold_utility(task, *own[0])] for task, own in zip(tasks, said)])
    row = perturbation_table(Judge(truth), TOKENIZER, tasks, said, utilities, 0)["another prompt"]
    assert row["n"] == 1 and row["share"] == 1
    assert row["drop"] == pytest.approx(1.5) and row["gold_drop"] == pytest.approx(1.5)  # off the prompt, its thing unnamed


def test_what_applies_to_no_story_has_no_row():
    tasks, said = TASKS[:2], [[Response("Oh")], [Response("Well")]]  # one word, none of the prompt's
    table = perturbation_table(Judge(truth), TOKENIZER, tasks, said, torch.tensor([[1.0], [1.0]]), 0)
    assert set(PERTURBATIONS) - set(table) == {"words shuffled", "one word of another prompt"}
    table = perturbation_table(Judge(truth), TOKENIZER, tasks, [[Response("")], [Response("")]], torch.zeros(2, 1), 0)
    assert "no end token" in table and "last sentence twice" not in table


def test_correlations_by_hand():
    utilities = torch.tensor([[1.0, 1.0 + 1e-7], [0.0, 0.0]])  # rounding of a sum is no difference
    responses = [[Response("a b"), Response("aaaa")], [Response("aaaaaaaa"), Response("a b c")]]
    figures = correlations(torch.tensor([[4.0, 3.0], [1.0, 2.0]]), utilities, responses)
    # Ranks 4, 3, 1, 2 and 3.5, 3.5, 1.5, 1.5: 4 / sqrt(5 * 4).
    assert figures["spearman"] == pytest.approx(4 / math.sqrt(20))
    # Within a utility: rewards (0.5, -0.5), (-0.5, 0.5) and words (0.5, -0.5), (-1, 1): 1.5 / sqrt(1 * 2.5).
    assert figures["length_correlation"] == pytest.approx(1.5 / math.sqrt(2.5))


def tiny_policy():
    torch.manual_seed(0)
    return ModernGPT(ModernGPTConfig(vocab_size=TOKENIZER.vocab_size, block_size=32, n_layer=1, n_head=2, d_model=16)).eval()


def test_stories_are_sampled_for_distinct_prompts_of_the_split_and_scored_where_they_belong():
    tasks, responses, utilities = sample_stories(tiny_policy(), TOKENIZER, 5, 3, 7, "val")
    assert tasks == make_tasks("val", 5, 7, ("story",), distinct=True) and [len(own) for own in responses] == [3] * 5
    assert responses == sample_responses(tiny_policy(), TOKENIZER, tasks, 3, 7)
    many = sample_stories(tiny_policy(), TOKENIZER, 150, 1, 7, "val")[0]
    assert len({task.prompt for task in many}) == 150 > len({task.prompt for task in make_tasks("val", 150, 7, ("story",))})
    assert sample_stories(tiny_policy(), TOKENIZER, 1, 1, 7)[0] == make_tasks("test", 1, 7, ("story",), distinct=True)
    rewards = score_stories(Judge(truth), TOKENIZER, tasks, responses)
    assert utilities.shape == (5, 3)
    for i, task in enumerate(tasks):
        expected = [gold_utility(task, *one) for one in responses[i]]
        assert utilities[i].tolist() == pytest.approx(expected, abs=1e-5)
        assert rewards[i].tolist() == pytest.approx(expected, abs=1e-5)


def exact_or_not(prompt, text, ended):
    """The truth for all families: the task is found again among those that the run has made."""
    if prompt.startswith("Tell a story."):
        return truth(prompt, text, ended)
    task = next(task for task in make_tasks("test", 14, 2, tuple(EXACT), distinct=True) if task.prompt == prompt)
    return (1.0 if verify(task, text) else -1.0) - 3.0 * (not ended)


def test_a_model_that_is_the_truth_agrees_with_it_in_every_figure():
    figures = final_figures(Judge(exact_or_not), TOKENIZER, tiny_policy(), 14, 0.4, 2)
    agreement = {name: value for name, value in figures.items() if name.startswith("agreement_")}
    assert len(agreement) > 10 and set(agreement.values()) == {1.0}
    assert figures["spearman"] == pytest.approx(1)
    above = {name: value for name, value in figures.items() if name.startswith("above_")}
    assert above and set(above.values()) == {1.0}


def test_the_final_figures_of_an_untrained_model_are_all_there_and_shares():
    model = RewardModel(tiny_policy())
    figures = final_figures(model, TOKENIZER, tiny_policy(), 14, 0.4, 1)
    names = ("story", *EXACT, "policy", "reference", "corrupted", "swapped", "clear")
    needed = {"pairwise_accuracy", "spearman", "length_correlation", "consistency_all", "consistency_policy",
              "agreement_all", *(f"pairwise_accuracy_{name}" for name in names),
              *(f"agreement_{name}" for name in names)}
    assert needed <= set(figures)
    assert all(isinstance(value, float) and " " not in name for name, value in figures.items())
    for name, value in figures.items():
        assert 0 <= value <= 1 if name.startswith(("pairwise", "agreement", "above")) else -1 <= value <= 1
    tasks, responses, utilities = sample_stories(tiny_policy(), TOKENIZER, 14, 4, 2)  # other prompts than those of the pairs
    assert figures["spearman"] == pytest.approx(correlations(
        score_stories(model, TOKENIZER, tasks, responses), utilities, responses)["spearman"])
    test = make_pairs(tiny_policy(), TOKENIZER, "test", 14, 14, 0.4, 1)
    chosen, rejected = pair_rewards(model, TOKENIZER, test.pairs)
    assert figures["pairwise_accuracy"] == pytest.approx((chosen > rejected).double().mean().item())
    assert figures["pairwise_accuracy"] != figures["agreement_all"]  # the annotator has erred
    assert figures == final_figures(model, TOKENIZER, tiny_policy(), 14, 0.4, 1)


def test_the_final_figures_say_how_often_good_stories_are_above_spoilt_ones():
    judge = Judge(lambda prompt, text, ended: zlib.crc32(f"{text} {ended}".encode()) / 2**32)  # as good as drawn
    figures = final_figures(judge, TOKENIZER, tiny_policy(), 14, 0.4, 1)
    table = perturbation_table(judge, TOKENIZER, *sample_stories(tiny_policy(), TOKENIZER, 14, 4, 2), 1)
    assert {name: value for name, value in figures.items() if name.startswith("above_")} == {
        f"above_{name.replace(' ', '_')}": row["share"] for name, row in table.items()}
    assert any(row["low"] < row["share"] < row["high"] for row in table.values())
