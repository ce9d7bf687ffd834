"""Lesson 8.2: rewards, against numbers worked by hand, the sum over an answer, and lesson 7.2's scoring of the same ids."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_6.prompt_template import END, decode_answer, encode_prompt
from part_7.preference_data import Response
from part_7.reward_model import RewardModel
from part_7.scoring import encode_response, score
from part_8.rewards import score_rollout, token_rewards
from part_8.rollout import as_rollout
from tests.part_8.tiny_stages import TOKENIZER, tiny_model

END_ID = TOKENIZER.special_ids[END]
PROMPTS = [encode_prompt(text, TOKENIZER) for text in ("Hi.", "Tell a story. Ann took the ball to the park.", "Sort: a b")]


def make_judge(pooling="mean", causal=False):
    """A reward model whose scores are far apart."""
    model = RewardModel(tiny_model(1), pooling, causal).eval()
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    return model


def draw_case(lengths, seed=0):
    """Prompts of 1 to 5 tokens and answers of these lengths as tensors for `token_rewards`: scores, log-probabilities of
    policy and reference with garbage outside of the answers, and the mask."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randint(1, 6, (len(lengths),), generator=generator).tolist()
    rollout = as_rollout([[1] * n for n in before], [[2] * n for n in lengths], 0)
    policy, home = -5 * torch.rand(2, *rollout.mask.shape, generator=generator)
    return torch.randn(len(lengths), generator=generator), policy, home, rollout.mask


# ---- the reward of each token ----

def test_rewards_by_hand():
    # Columns: the prompt's second token; three choices; padding. beta 0.5, log ratios 1, -2, 0 and score 10:
    # -0.5, +1, and 0 + 10. Second row: one choice only, log ratio 3 and score -4: -1.5 - 4.
    policy = torch.tensor([[-9.0, -1.0, -3.0, -2.0, -7.0], [-1.0, -8.0, -9.0, -9.0, -9.0]])
    home = torch.tensor([[-1.0, -2.0, -1.0, -2.0, -1.0], [-4.0, -1.0, -1.0, -1.0, -1.0]])
    mask = torch.tensor([[False, True, True, True, False], [True, False, False, False, False]])
    rewards = token_rewards(torch.tensor([10.0, -4.0]), policy, home, mask, beta=0.5)
    assert rewards.tolist() == [[0, -0.5, 1, 10, 0], [-5.5, 0, 0, 0, 0]]


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)
CASES = st.tuples(LENGTHS, st.sampled_from([0.0, 0.1, 2.0]), st.integers(0, 10**6))


@settings(max_examples=100, deadline=None)
@given(CASES)
def test_the_rewards_of_an_answer_add_up_to_its_score_less_the_price_of_its_log_ratio(drawn):
    lengths, beta, seed = drawn
    scores, policy, home, mask = draw_case(lengths, seed)
    rewards = token_rewards(scores, policy, home, mask, beta)
    for row, own in enumerate(mask):
        ratio = sum(policy[row, t].item() - home[row, t].item() for t in range(len(own)) if own[t])
        assert rewards[row].sum().item() == pytest.approx(scores[row].item() - beta * ratio, abs=1e-4)


@settings(max_examples=50, deadline=None)
@given(CASES)
def test_the_score_stands_at_the_last_token_of_an_answer_and_nowhere_else(drawn):
    lengths, beta, seed = drawn
    scores, policy, home, mask = draw_case(lengths, seed)
    with_score, without = (token_rewards(x, policy, home, mask, beta) for x in (scores, torch.zeros_like(scores)))
    for row, own in enumerate(mask):
        last = max(t for t in range(len(own)) if own[t])
        expected = torch.zeros(len(own))
        expected[last] = scores[row]
        torch.testing.assert_close((with_score - without)[row], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("garbage", [123.0, float("inf"), float("-inf"), float("nan")])
def test_prompt_and_padding_get_exactly_nothing_whatever_stands_there(garbage):
    scores, policy, home, mask = draw_case([4, 1, 7])
    expected = token_rewards(scores, policy, home, mask, 0.3)
    spoilt = torch.where(mask, policy, garbage), torch.where(mask, home, -garbage)
    rewards = token_rewards(scores, *spoilt, mask, 0.3)
    assert torch.equal(rewards, expected) and not rewards[~mask].any() and rewards[mask].all()


def test_the_policy_s_own_reference_costs_nothing_and_without_beta_leaving_it_is_free():
    scores, policy, home, mask = draw_case([4, 1, 7])
    at_home, free = token_rewards(scores, policy, policy, mask, 5.0), token_rewards(scores, policy, home, mask, 0.0)
    assert torch.equal(at_home, free) and torch.equal(free.sum(1), scores)


def test_what_the_reference_would_rather_say_is_paid_for():
    mask = torch.ones(1, 2, dtype=torch.bool)
    rewards = token_rewards(torch.zeros(1), torch.tensor([[-1.0, -3.0]]), torch.tensor([[-3.0, -1.0]]), mask, 0.1)
    assert rewards.tolist() == [[pytest.approx(-0.2), pytest.approx(0.2)]]


# ---- the score of an answer ----

TEXTS = st.lists(st.tuples(st.text(st.characters(codec="utf-8"), max_size=15), st.booleans()), min_size=1, max_size=5)


@pytest.mark.parametrize("pooling, causal", [("mean", False), ("last", True)])
@settings(max_examples=25, deadline=None)
@given(TEXTS)
def test_scores_are_those_of_lesson_7_2_for_the_same_ids(pooling, causal, texts):
    judge, prompts = make_judge(pooling, causal), ["Hi.", "Tell a story. Ann sat.", "Sort: a b", "x", "y z"][:len(texts)]
    rows = [encode_response(prompt, Response(*text), TOKENIZER) for prompt, text in zip(prompts, texts)]
    before = [encode_prompt(prompt, TOKENIZER) for prompt in prompts]
    rollout = as_rollout(before, [ids[len(own):] for own, (ids, _) in zip(before, rows)], END_ID)
    assert rollout.ended.tolist() == [ended for _, ended in texts]
    torch.testing.assert_close(score_rollout(judge, rollout), score(judge, rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_score_is_the_same_alone_and_amid_longer_answers(pooling):
    judge, answers = make_judge(pooling), [[40, END_ID], [50, 60, 70, 80, 90, 100, END_ID], [33]]
    together = score_rollout(judge, as_rollout(PROMPTS, answers, END_ID))
    alone = [score_rollout(judge, as_rollout([prompt], [answer], END_ID)).item() for prompt, answer in zip(PROMPTS, answers)]
    assert together.tolist() == pytest.approx(alone, abs=1e-5) and together.std() > 0.1
    # Whatever stands in padding: tokens after the answer are looked up, and count for nothing.
    rollout = as_rollout(PROMPTS, answers, END_ID)
    garbage = torch.randint(TOKENIZER.vocab_size, rollout.tokens.shape, generator=torch.Generator().manual_seed(0))
    rollout = rollout._replace(tokens=torch.where(rollout.positions < 0, garbage, rollout.tokens))
    torch.testing.assert_close(score_rollout(judge, rollout), together, rtol=0, atol=1e-5)


def test_the_mean_is_over_the_answer_alone():
    # Two answers of one token each, the same one: what the prompt says matters only by what the token sees of it.
    judge = make_judge()
    torch.nn.init.zeros_(judge.encoder.blocks[0].attention.project.weight)
    torch.nn.init.zeros_(judge.encoder.blocks[1].attention.project.weight)  # no token sees another one
    first, second = score_rollout(judge, as_rollout(PROMPTS[:2], [[50], [50]], END_ID)).tolist()
    other = score_rollout(judge, as_rollout(PROMPTS[:1], [[51]], END_ID)).item()
    pair = score_rollout(judge, as_rollout(PROMPTS[:1], [[50, 51]], END_ID)).item()
    assert first == pytest.approx(second, abs=1e-5) and abs(first - other) > 0.1
    assert pair == pytest.approx((first + other) / 2, abs=1e-5)


def test_only_an_answer_without_its_proper_end_pays_the_penalty():
    judge, other_special = make_judge(), next(id for id in TOKENIZER.special_ids.values() if id != END_ID)
    rollout = as_rollout([PROMPTS[0]] * 4, [[40, END_ID], [40], [40, other_special], [END_ID]], END_ID)
    free, fined = (score_rollout(judge, rollout, penalty) for penalty in (0.0, 1.5))
    assert (free - fined).tolist() == pytest.approx([0, 1.5, 1.5, 0], abs=1e-5)
    assert torch.equal(score_rollout(judge, rollout), free)  # none unless asked for


def test_ids_that_their_text_would_not_give_have_a_score_of_their_own():
    judge, canonical = make_judge(), TOKENIZER.encode(" the")
    bytes_of_it = [id for byte in " the" for id in TOKENIZER.encode(byte)]
    assert len(canonical) < len(bytes_of_it) and decode_answer(canonical, TOKENIZER) == decode_answer(bytes_of_it, TOKENIZER)
    scores = score_rollout(judge, as_rollout([PROMPTS[0]] * 2, [[*canonical, END_ID], [*bytes_of_it, END_ID]], END_ID))
    [text] = score(judge, [encode_response("Hi.", Response("the"), TOKENIZER)]).tolist()
    assert scores[0].item() == pytest.approx(text, abs=1e-5) and abs(scores[1].item() - text) > 0.01
    # Exactly that of the ids: as if lesson 7.2 had been given them.
    ids = [*PROMPTS[0], *bytes_of_it, END_ID]
    [expected] = score(judge, [(ids, [0] * len(PROMPTS[0]) + [1] * (len(bytes_of_it) + 1))]).tolist()
    assert scores[1].item() == pytest.approx(expected, abs=1e-5)


def test_scores_record_no_gradients_and_are_fp32_in_bf16_too():
    judge, rollout = make_judge(), as_rollout(PROMPTS, [[40, 41], [50, END_ID], [33]], END_ID)
    exact, rough = score_rollout(judge, rollout), score_rollout(judge, rollout, 0.0, torch.bfloat16)
    assert exact.dtype == rough.dtype == torch.float32 and not exact.requires_grad
    assert 0 < (rough - exact).abs().max() < 0.3 * exact.std()
