"""Lesson 8.4: what a policy has gained, against enumerations and numbers worked by hand."""

import math

import pytest
import torch

from part_6.prompt_template import END, decode_answer, encode_chat, encode_prompt
from part_6.task_families import Task
from part_6.tasks import make_tasks
from part_7.reward_model import RewardModel
from part_8 import policy_scores
from part_8.policy_scores import Answers, answer_scores, exact_scores, reference_loss, sample_answers
from part_8.prompts import Prompt
from part_8.rollout import as_rollout, collect
from tests.part_8.tiny_stages import TOKENIZER, tiny_model

END_ID = TOKENIZER.special_ids[END]
STOPS = (END_ID, *(id for id in TOKENIZER.special_ids.values() if id != END_ID))


def decided_model(seed):
    """A tiny model whose distributions are far from uniform; another seed says something else."""
    model = tiny_model(seed)
    with torch.no_grad():
        model.head.weight.mul_(30)
    return model


def prompts_of(tasks):
    return [Prompt([{"role": "user", "content": task.prompt}], encode_prompt(task.prompt, TOKENIZER), task)
            for task in tasks]


def addition(a, b):
    return Task("add", 1, f"What is {a} + {b}?", str(a + b), "")


PROMPTS = prompts_of([addition(a, a + 1) for a in range(5)] + [addition(10, 20)])


def next_log_probs(model, ids):
    """log pi(. | ids), a list: one pass without padding."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]))[0, -1].double()
    total = math.log(sum(math.exp(x) for x in logits.tolist()))
    return [x - total for x in logits.tolist()]


def divergence(policy, reference, ids):
    return sum(math.exp(a) * (a - b) for a, b in zip(next_log_probs(policy, ids), next_log_probs(reference, ids)))


def some(gold, **changes):
    n = len(gold)
    columns = dict(texts=["x"] * n, ended=[True] * n, rewards=[0.0] * n, kl=[0.0] * n, lengths=[1.0] * n,
                   correct=[False] * n, gold=gold)
    return Answers(**columns | changes)


def test_means_worked_by_hand():
    answers = some([1.0, -2.0], rewards=[0.5, 1.5], kl=[2.0, 5.0], lengths=[3.0, 4.0], ended=[True, False],
                   correct=[True, True])
    assert answer_scores(answers, "before") == {"reward_before": 1.0, "kl_before": 3.5, "length_before": 3.5,
                                                "ended_before": 0.5, "gold_before": -0.5, "correct_before": 1.0}


def test_a_tie_is_half_a_win_and_the_gain_is_the_mean_difference():
    # won, lost, tied; 0.1 + 0.2 is 0.3 but for rounding, a tie too: (1 + 0 + 1/2 + 1/2) / 4
    own, others = some([2.0, -1.0, 0.5, 0.1 + 0.2]), some([1.0, 0.0, 0.5, 0.3])
    scores = answer_scores(own, "after", others)
    assert scores["win_rate"] == 0.5 and scores["gold_gain"] == pytest.approx(0.0)
    assert answer_scores(others, "after", own)["win_rate"] == 0.5
    scores = answer_scores(some([2.0, 3.0, 0.5, 0.0]), "after", some([1.0, 0.0, 0.5, 0.5]))  # 1, 1, 1/2, 0
    assert scores["win_rate"] == 0.625 and scores["gold_gain"] == pytest.approx(0.875)
    assert answer_scores(own, "after", own)["win_rate"] == 0.5


def test_the_intervals_are_about_as_wide_as_the_normal_approximation_says():
    gains = [1.0] * 120 + [-1.0] * 60 + [0.0] * 20
    scores = answer_scores(some(gains), "after", some([0.0] * 200))
    for name, mean, std in (("win_rate", 0.65, math.sqrt((120 + 20 / 4) / 200 - 0.65**2)),
                            ("gold_gain", 0.3, math.sqrt(180 / 200 - 0.3**2))):
        half = 1.96 * std / math.sqrt(200)
        assert scores[name] == pytest.approx(mean)
        assert scores[f"{name}_low"] == pytest.approx(mean - half, abs=0.2 * half)
        assert scores[f"{name}_high"] == pytest.approx(mean + half, abs=0.2 * half)


def test_answers_without_gold_are_compared_in_nothing():
    own = some([1.0])._replace(gold=None, correct=None)
    assert set(answer_scores(own, "after", own)) == {"reward_after", "kl_after", "length_after", "ended_after"}
    assert "win_rate" not in answer_scores(some([1.0]), "before")


def test_the_reference_has_no_divergence_from_itself():
    model = decided_model(1)
    assert sample_answers(model, model, None, TOKENIZER, PROMPTS, 5, STOPS, 0).kl == [0.0] * len(PROMPTS)


def test_the_divergence_of_one_token_is_the_exact_one_in_the_order_of_the_prompts_whatever_was_drawn():
    policy, reference = decided_model(1), decided_model(2)
    expected = [divergence(policy, reference, one.ids) for one in PROMPTS]
    for seed, batch_size in ((0, 256), (1, 4), (2, 1)):
        answers = sample_answers(policy, reference, None, TOKENIZER, PROMPTS, 1, STOPS, seed, batch_size)
        assert answers.kl == pytest.approx(expected, rel=1e-4)
        assert answers.lengths == [1.0] * len(PROMPTS) and all(map(math.isnan, answers.rewards))


def test_divergence_reward_and_length_of_longer_answers_are_those_of_a_slow_loop():
    policy, reference, reward_model = decided_model(1), decided_model(2), RewardModel(decided_model(3)).eval()
    reward_model.gain.fill_(20.0)
    answers = sample_answers(policy, reference, reward_model, TOKENIZER, PROMPTS, 6, STOPS, 7)
    said = collect(policy, [one.ids for one in PROMPTS], 6, STOPS, generator=torch.Generator().manual_seed(7)).answers()
    assert answers.texts == [decode_answer(ids, TOKENIZER) for ids in said] and answers.lengths == list(map(len, said))
    assert answers.ended == [ids[-1] == END_ID for ids in said]
    for one, ids, kl, reward in zip(PROMPTS, said, answers.kl, answers.rewards):
        assert kl == pytest.approx(sum(divergence(policy, reference, one.ids + ids[:t]) for t in range(len(ids))), rel=1e-4)
        whole = one.ids + ids
        with torch.no_grad():
            hidden = reward_model.encoder.hidden_states(torch.tensor([whole]), torch.arange(len(whole))[None], causal=False)
            mean = hidden[0, len(one.ids):].mean(0)
        assert reward == pytest.approx(20 * (mean @ reward_model.score.weight[0]).item(), abs=1e-4)  # without any penalty


def test_the_mean_divergence_of_samples_nears_that_over_all_sequences():
    # two tokens: KL of the sequences = KL of the first token + sum over it of pi(a) KL of the second
    policy, reference, one = tiny_model(1), tiny_model(2), PROMPTS[0]
    for model in (policy, reference):
        with torch.no_grad():
            model.head.weight.mul_(10)
    first = [math.exp(x) for x in next_log_probs(policy, one.ids)]
    likely = sorted(range(len(first)), key=lambda i: -first[i])
    after = torch.tensor([one.ids + [i] for i in likely])
    with torch.no_grad():
        here, home = (model(after)[:, -1].double().log_softmax(-1) for model in (policy, reference))
    second = (here.exp() * (here - home)).sum(-1).tolist()
    exact = divergence(policy, reference, one.ids) + sum(first[i] * kl for i, kl in zip(likely, second))
    answers = sample_answers(policy, reference, None, TOKENIZER, [one] * 2000, 2, (10**6,), 0, 1000)
    error = torch.tensor(answers.kl).std().item() / math.sqrt(2000)
    assert sum(answers.kl) / 2000 == pytest.approx(exact, abs=4 * error) and error < 0.02 * exact


def test_the_same_seed_draws_the_same_and_another_one_draws_others():
    model, reference = decided_model(1), decided_model(2)
    draws = [sample_answers(model, reference, None, TOKENIZER, PROMPTS, 6, STOPS, seed).texts for seed in (3, 3, 4)]
    assert draws[0] == draws[1] != draws[2]


def test_an_answer_without_its_end_is_not_correct_and_is_worth_three_less(monkeypatch):
    said = [("1", True), ("3", False), ("7", True), ("8", False)]  # right, right without end, wrong twice

    def given(policy, prompts, *rest, **options):
        return as_rollout(prompts, [TOKENIZER.encode(" " + text) + [END_ID] * ended for text, ended in said], END_ID)

    monkeypatch.setattr(policy_scores, "collect", given)
    model = tiny_model()
    answers = sample_answers(model, model, None, TOKENIZER, PROMPTS[:4], 6, STOPS, 0)
    assert answers.texts == [text for text, _ in said] and answers.ended == [ended for _, ended in said]
    assert answers.correct == [True, False, False, False] and answers.gold == [1.0, -2.0, -1.0, -4.0]


def test_prompts_that_are_no_tasks_have_neither_verdict_nor_gold():
    model, own = tiny_model(), [one._replace(task=None) for one in PROMPTS]
    answers = sample_answers(model, model, None, TOKENIZER, own, 3, STOPS, 0)
    assert answers.correct is None and answers.gold is None and len(answers.texts) == len(own)


def test_exact_scores_are_shares_of_each_family_and_the_mean_of_the_exact_ones(monkeypatch):
    tasks = [*make_tasks("test", 3, 0, ("sort",)), addition(1, 2), *make_tasks("test", 1, 0, ("story",))]
    said = {task.prompt: (task.answer, True) for task in tasks}
    said[tasks[0].prompt] = ("no", True)
    said[tasks[1].prompt] = (tasks[1].answer, False)  # right, but without its end: of three one is right

    def given(policy, tokenizer, prompts, temperature=0.0):
        assert temperature == 0
        return [said[prompt] for prompt in prompts]

    monkeypatch.setattr(policy_scores, "answer", given)
    assert exact_scores(tiny_model(), TOKENIZER, tasks, "after") == pytest.approx({
        "exact_match_after_sort": 1 / 3, "exact_match_after_add": 1.0, "exact_match_after_story": 1.0,
        "exact_match_after": (1 / 3 + 1) / 2})


def test_the_reference_loss_of_one_example_is_its_cross_entropy_by_hand(monkeypatch):
    task, model = addition(1, 2), decided_model(1)
    monkeypatch.setattr(policy_scores, "make_tasks", lambda split, n: {"val": [task]}[split])
    ids, _ = encode_chat([{"role": "user", "content": task.prompt}, {"role": "assistant", "content": "3"}], TOKENIZER)
    start = ids.index(TOKENIZER.special_ids["<|assistant|>"]) + 1
    assert ids[-1] == END_ID
    losses = [-next_log_probs(model, ids[:t])[ids[t]] for t in range(start, len(ids))]
    figures = reference_loss(model, TOKENIZER, True)
    assert figures == {"val_loss": pytest.approx(sum(losses) / len(losses), rel=1e-5),
                       "bits_per_byte": pytest.approx(sum(losses) / math.log(2) / len(" 3"), rel=1e-5)}


def test_reference_answers_that_do_not_fit_into_a_table_of_positions_have_no_loss(monkeypatch):
    messages = [{"role": "user", "content": "What is 1 + 2?"}, {"role": "assistant", "content": "3"}]
    length = len(encode_chat(messages, TOKENIZER)[0])  # the last token is no input
    monkeypatch.setattr(policy_scores, "make_tasks", lambda split, n: [addition(1, 2)])
    for positions, block_size, there in (("learned", length - 2, False), ("learned", length - 1, True), ("rope", 4, True),
                                         ("sinusoidal", length - 2, False)):
        figures = reference_loss(tiny_model(positions=positions, block_size=block_size), TOKENIZER, True)
        assert (figures["val_loss"] is not None) == (figures["bits_per_byte"] is not None) == there


def test_prompts_of_one_s_own_have_no_reference_loss():
    assert reference_loss(tiny_model(), TOKENIZER, False) == {"val_loss": None, "bits_per_byte": None}
