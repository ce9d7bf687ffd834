"""Lesson 8.4: experience, against loops over single rows without padding, and numbers worked by hand."""

import math

import pytest
import torch

from part_6.prompt_template import END, encode_prompt
from part_6.task_families import Task
from part_8.experience import Experience, gold_figures, make_experience, rollout_figures
from part_8.policy import ActorCritic
from part_8.prompts import Prompt
from part_8.rollout import as_rollout
from tests.part_8.tiny_stages import TOKENIZER, tiny_model

END_ID = TOKENIZER.special_ids[END]
PROMPTS = [[5, 6, 7, 8], [9], [3, 30]]
ANSWERS = [[11, 12, END_ID], [21, 22, 23, 24, 25], [END_ID]]
ROLLOUT = as_rollout(PROMPTS, ANSWERS, END_ID)
SCORES = torch.tensor([1.5, -2.0, 0.25])
FIELDS = ("log_probs", "ref_log_probs", "values", "entropy", "rewards", "advantages", "returns")


def decided_model(seed):
    """A tiny model whose distributions are far from uniform; another seed says something else."""
    model = tiny_model(seed)
    with torch.no_grad():
        model.head.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def models():
    """An ActorCritic with values that differ, and a reference with other weights."""
    model = ActorCritic(decided_model(1), decided_model(2))
    with torch.no_grad():
        model.value.weight.normal_(generator=torch.Generator().manual_seed(4))
        model.value.bias.fill_(0.3)
    return model, decided_model(3)


def make(models, beta=0.1, **options):
    return make_experience(*models, ROLLOUT, SCORES, beta, **options)


def of_row(part, row):
    """The numbers of one row's choices, a list."""
    return part[row][ROLLOUT.mask[row]].tolist()


def slowly(model, reference, row, temperature=1.0, keep=None):
    """Of each choice of a row, read alone and without padding: log-probabilities of policy and reference, V and the
    entropy. keep: gives the tokens that stay, from the policy's logits and the token that was chosen."""
    prompt, answer = PROMPTS[row], ANSWERS[row]
    choices = []
    for n, token in enumerate(answer):
        ids = torch.tensor([prompt + answer[:n]])
        with torch.no_grad():
            logits, home = model.policy(ids)[0, -1], reference(ids)[0, -1]
            value = model.value(model.critic.hidden_states(ids)[0, -1]).item()
        kept = range(len(logits)) if keep is None else keep(logits / temperature, token)
        p, q = ([math.exp(one[i].item() / temperature) for i in kept] for one in (logits, home))
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        place = list(kept).index(token)
        choices.append((math.log(p[place]), math.log(q[place]), value, -sum(x * math.log(x) for x in p)))
    return zip(*choices)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_each_number_of_a_choice_is_what_a_slow_loop_without_padding_gives(temperature, models):
    experience = make(models, temperature=temperature)
    for row in range(3):
        for name, expected in zip(FIELDS, slowly(*models, row, temperature)):
            assert of_row(getattr(experience, name), row) == pytest.approx(list(expected), rel=1e-4, abs=1e-5), name
    assert experience.kept is None and not any(getattr(experience, name).requires_grad for name in FIELDS)


def test_a_policy_that_is_its_own_reference_has_no_divergence_and_its_rewards_are_the_scores(models):
    model = models[0]
    experience = make((model, model.policy), beta=5.0)
    assert torch.equal(experience.log_probs, experience.ref_log_probs)
    # row 0 ends at its third choice, row 1 at its fifth, row 2 at its only one; nothing anywhere else
    assert [of_row(experience.rewards, row) for row in range(3)] == [[0, 0, 1.5], [0, 0, 0, 0, -2.0], [0.25]]
    assert experience.rewards.abs().sum() == 3.75
    figures = rollout_figures(experience)
    assert figures["kl"] == figures["kl_per_token"] == 0


def test_the_penalty_is_taken_off_at_each_token_and_the_score_comes_with_the_last(models):
    experience = make(models, beta=0.3)
    for row in range(3):
        own, home, *_ = map(list, slowly(*models, row))
        expected = [-0.3 * (a - b) for a, b in zip(own, home)]
        expected[-1] += SCORES[row].item()
        assert of_row(experience.rewards, row) == pytest.approx(expected, abs=1e-4)
        assert experience.rewards[row].sum().item() == pytest.approx(SCORES[row].item() - 0.3 * (sum(own) - sum(home)),
                                                                     abs=1e-3)
    assert torch.equal(experience.scores, SCORES)


@pytest.mark.parametrize("whiten_advantages", [False, True])
@pytest.mark.parametrize("whiten_rewards", [False, True])
def test_advantages_and_returns_by_hand_and_what_is_whitened_when(whiten_rewards, whiten_advantages, models):
    gamma, lam = 0.9, 0.8
    experience = make(models, beta=0.3, gamma=gamma, lam=lam, whiten_rewards=whiten_rewards,
                      whiten_advantages=whiten_advantages)
    rewards = [of_row(experience.rewards, row) for row in range(3)]  # these are never whitened
    values = [of_row(experience.values, row) for row in range(3)]
    flat = sum(rewards, [])
    if whiten_rewards:  # spread 1, with the mean that they had
        mean = sum(flat) / 9
        std = math.sqrt(sum((r - mean) ** 2 for r in flat) / 9)
        rewards = [[(r - mean) / std + mean for r in row] for row in rewards]
        assert sum(sum(rewards, [])) / 9 == pytest.approx(mean)
    expected = []
    for own, v in zip(rewards, values):
        v, row = [*v, 0.0], []
        deltas = [r + gamma * v[t + 1] - v[t] for t, r in enumerate(own)]
        for t in range(len(own)):  # the sum itself, equation 16, and not its recursion
            row.append(sum((gamma * lam) ** k * delta for k, delta in enumerate(deltas[t:])))
        expected.append(row)
    for row in range(3):  # the returns are fixed before the advantages are whitened
        returns = [a + v for a, v in zip(expected[row], values[row])]
        assert of_row(experience.returns, row) == pytest.approx(returns, abs=1e-4)
    if whiten_advantages:
        flat = sum(expected, [])
        mean = sum(flat) / 9
        std = math.sqrt(sum((a - mean) ** 2 for a in flat) / 9)
        expected = [[(a - mean) / std for a in row] for row in expected]
    for row in range(3):
        assert of_row(experience.advantages, row) == pytest.approx(expected[row], abs=1e-4)
    assert experience.advantages[~ROLLOUT.mask].abs().max() == 0 and experience.returns[~ROLLOUT.mask].abs().max() == 0


@pytest.mark.parametrize("options", [{"top_k": 4}, {"top_p": 0.6}, {"top_k": 30, "top_p": 0.4, "temperature": 1.5}])
def test_what_top_k_and_top_p_leave_of_the_policy_is_what_both_models_are_measured_over(options, models):
    k, p, temperature = options.get("top_k", 10**6), options.get("top_p", 1.0), options.get("temperature", 1.0)

    def keep(logits, token):
        ranked = sorted(range(len(logits)), key=lambda i: -logits[i].item())[:k]
        weights = [math.exp(logits[i].item()) for i in ranked]
        kept, so_far = set(), 0.0
        for i, weight in zip(ranked, weights):
            if so_far < p * sum(weights):
                kept.add(i)
            so_far += weight
        return sorted(kept | {token})  # what was drawn is never ruled out

    experience = make(models, **options)
    for row in range(3):
        for name, expected in zip(FIELDS, slowly(*models, row, temperature, keep)):
            assert of_row(getattr(experience, name), row) == pytest.approx(list(expected), rel=1e-4, abs=1e-4), name
    widths = experience.kept.sum(-1)[ROLLOUT.mask]
    assert widths.max() < 50 and torch.isfinite(experience.rewards).all()


def test_selected_rows_keep_all_that_belongs_to_them(models):
    for options in ({}, {"top_k": 5}):
        whole = make(models, **options)
        part = whole.select(torch.tensor([2, 0]))
        assert isinstance(part, Experience) and part.rollout.answers() == [ANSWERS[2], ANSWERS[0]]
        assert part.scores.tolist() == [0.25, 1.5] and (part.kept is None) == (not options)
        for name in (*FIELDS, *["kept"] * bool(options)):
            assert torch.equal(getattr(part, name), getattr(whole, name)[[2, 0]]), name


def by_hand():
    """An Experience of two answers, of 2 tokens and of 1, with easy numbers; 9 stands where nothing may be read."""
    rollout = as_rollout([[1], [1]], [[2, 3], [END_ID]], END_ID)
    parts = dict(scores=torch.tensor([1.0, 4.0]), log_probs=[[-1.0, -2.0], [-0.5, 9.0]],
                 ref_log_probs=[[-1.5, -4.0], [-1.0, 8.0]], values=[[9.0, 9.0], [9.0, 9.0]],
                 entropy=[[0.1, 0.2], [0.6, 9.0]], rewards=[[9.0, 9.0], [9.0, 9.0]],
                 advantages=[[9.0, 9.0], [9.0, 9.0]], returns=[[9.0, 9.0], [9.0, 9.0]])
    return Experience(rollout, **{name: torch.as_tensor(part) for name, part in parts.items()}, kept=None)


def test_the_figures_of_a_rollout_worked_by_hand():
    # log ratios 0.5, 2.0 and 0.5: answers 2.5 and 0.5, their mean 1.5; a token 3 / 3
    assert rollout_figures(by_hand()) == pytest.approx({
        "score": 2.5, "score_std": 1.5, "kl": 1.5, "kl_per_token": 1.0, "entropy": 0.3, "length": 1.5, "ended": 0.5})


def task_prompt(family, question, answer):
    return Prompt([{"role": "user", "content": question}], encode_prompt(question, TOKENIZER),
                  Task(family, 1, question, answer, ""))


def answered(prompts, answers):
    """An Experience with these texts as answers; an end token comes where the text is not cut off by "...". """
    ids = [TOKENIZER.encode(" " + text.removesuffix("...")) + ([] if text.endswith("...") else [END_ID]) for text in answers]
    empty = torch.zeros(1)
    return Experience(as_rollout([one.ids for one in prompts], ids, END_ID), empty, *[empty] * 7, None)


def test_gold_figures_of_answers_whose_worth_is_known():
    add, sort = task_prompt("add", "What is 2 + 3?", "5"), task_prompt("sort", "Sort: red cup", "cup red")
    # right +1, wrong -1, without end token 3 less
    for answers, worth in ((("5", "cup red"), 1.0), (("5", "red cup"), 0.0), (("4", "red cup"), -1.0),
                           (("5...", "cup red"), -0.5)):
        assert gold_figures(answered([add, sort], answers), [add, sort], TOKENIZER) == {"gold": worth}
    tell = task_prompt("story", "Tell a story. Tom took the red cup to the barn.", "Tom smiled.")
    # a happy end is worth 1, the thing 0.5; a sad one -1
    assert gold_figures(answered([tell, tell], ["Tom liked the cup very much.", "Tom cried."]), [tell, tell], TOKENIZER) == {
        "gold": pytest.approx((1.5 - 1.0) / 2)}


def test_prompts_that_are_no_tasks_have_no_gold():
    own = Prompt([{"role": "user", "content": "hi"}], encode_prompt("hi", TOKENIZER), None)
    assert gold_figures(answered([own], ["5"]), [own], TOKENIZER) == {}


def test_an_answer_as_people_read_it_says_whether_it_was_cut_off():
    add = task_prompt("add", "What is 2 + 3?", "5")
    experience = answered([add, add], ["5", "2 + 3 ="  "..."])
    assert experience.text(0, [add, add], TOKENIZER) == "What is 2 + 3? -> 5"
    assert experience.text(1, [add, add], TOKENIZER) == "What is 2 + 3? -> 2 + 3 = ..."
