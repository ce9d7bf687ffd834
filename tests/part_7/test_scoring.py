"""Lesson 7.2: from answers to rows of tokens, and from rows to rewards, whatever batch they are in."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_6.prompt_template import CHAT_TOKENS, END, chat_tokenizer, encode_chat, encode_prompt
from part_7.preference_data import Response
from part_7.reward_model import RewardModel
from part_7.scoring import encode_response, reward_batch, score, score_responses
from tests.part_6.tiny_base import WORLD

TOKENIZER = chat_tokenizer(BPETokenizer(train_bpe(count_chunks([WORLD]), 400, 1)[1]))
TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)


def said(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def make_model(pooling="mean", causal=False, seed=0, **options):
    """A reward model whose attention and head are far from nothing."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=TOKENIZER.vocab_size, block_size=32, n_layer=2, n_head=2, d_model=16)
    model = RewardModel(ModernGPT(ModernGPTConfig(**{**shape, **options})), pooling, causal).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.3)
    return model


def some_rows(n=23, seed=0):
    """Rows of 2 to 60 tokens in no order of length."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(n):
        before, answer = (int(torch.randint(1, 31, (), generator=generator)) for _ in range(2))
        rows.append((torch.randint(TOKENIZER.vocab_size, (before + answer,), generator=generator).tolist(),
                     [0] * before + [1] * answer))
    return rows


# ---- one row ----

@settings(max_examples=100, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=5).filter(lambda texts: len(texts) % 2), TEXTS, st.none() | TEXTS)
def test_an_answer_that_ended_is_scored_as_the_tokens_that_the_policy_learnt_to_write(turns, text, system):
    prompt = [{"role": "system", "content": system}] * (system is not None) + said(*turns)
    ids, is_answer = encode_response(prompt, Response(text), TOKENIZER)
    expected, learnt = encode_chat([*prompt, {"role": "assistant", "content": text}], TOKENIZER)
    assert ids == expected
    # Of what is learnt, the last answer alone: from behind the last token of the assistant's role.
    last = max(i for i, id in enumerate(ids) if id == TOKENIZER.special_ids["<|assistant|>"])
    assert is_answer == [int(i > last) for i in range(len(ids))]
    assert is_answer == [int(own and i > last) for i, own in enumerate(learnt)] and sum(is_answer) >= 1


@settings(max_examples=50, deadline=None)
@given(TEXTS, TEXTS)
def test_an_answer_that_did_not_end_lacks_the_end_token_and_nothing_else(prompt, text):
    whole, cut = (encode_response(prompt, Response(text, ended), TOKENIZER) for ended in (True, False))
    assert whole[0] == [*cut[0], TOKENIZER.special_ids[END]] and whole[1] == [*cut[1], 1]
    assert cut[0][:len(cut[0]) - sum(cut[1])] == encode_prompt(prompt, TOKENIZER)


def test_an_empty_answer_has_a_token_even_where_it_did_not_end():
    blank = TOKENIZER.encode(" ")
    assert len(blank) == 1
    for prompt in ("Tell a story.", said("a", "b", "c")):
        before = encode_prompt(prompt, TOKENIZER)
        assert encode_response(prompt, Response("", False), TOKENIZER) == (before + blank, [0] * len(before) + [1])
        assert encode_response(prompt, Response(""), TOKENIZER) == (
            [*before, *blank, TOKENIZER.special_ids[END]], [0] * len(before) + [1, 1])


def test_names_of_special_tokens_in_an_answer_stay_text():
    ids, _ = encode_response("hi", Response(" ".join(CHAT_TOKENS)), TOKENIZER)
    assert sum(id in TOKENIZER.special_ids.values() for id in ids) == 4  # user, end, assistant, end


def test_a_text_and_the_message_that_holds_it_are_one_prompt():
    assert (encode_response("Sort: red cup", Response("cup red"), TOKENIZER)
            == encode_response(said("Sort: red cup"), Response("cup red"), TOKENIZER))


def test_a_prompt_that_ends_with_the_assistant_is_refused():
    with pytest.raises(ValueError, match="ends with a message of the user"):
        encode_response(said("a", "b"), Response("c"), TOKENIZER)


@pytest.mark.parametrize("block_size", [1, 2, 5, 9, 17, 18, 100])
def test_a_row_longer_than_the_block_loses_its_beginning(block_size):
    ids, is_answer = encode_response(said("Ann", "ball", "Ben took the red ball."), Response("Ben sat down."), TOKENIZER)
    cut = encode_response(said("Ann", "ball", "Ben took the red ball."), Response("Ben sat down."), TOKENIZER, block_size)
    n = min(block_size, len(ids))
    assert cut == ([ids[len(ids) - n + i] for i in range(n)], [is_answer[len(ids) - n + i] for i in range(n)])
    assert cut[0][-1] == TOKENIZER.special_ids[END] and cut[1][-1] == 1


# ---- a batch ----

def test_a_batch_by_hand():
    tokens, positions, answer = reward_batch([([5, 6, 7], [0, 1, 1]), ([8], [1]), ([9, 4, 3, 2], [0, 0, 0, 1])])
    assert tokens[0, :3].tolist() == [5, 6, 7] and tokens[1, 0] == 8 and tokens[2].tolist() == [9, 4, 3, 2]
    assert positions.tolist() == [[0, 1, 2, -1], [0, -1, -1, -1], [0, 1, 2, 3]]
    assert answer.dtype == torch.bool and answer.tolist() == [
        [False, True, True, False], [True, False, False, False], [False, False, False, True]]
    assert tokens.shape == (3, 4) and tokens.min() >= 0  # padding must be some token: it is looked up


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("batch_size", [1, 2, 7, 23, 256])
def test_rewards_stand_in_the_order_of_their_rows_whatever_the_batches(pooling, batch_size):
    model, rows = make_model(pooling), some_rows()
    with torch.no_grad():
        alone = torch.cat([model(*reward_batch([row])) for row in rows])
    assert alone.std() > 0.1  # an order that can be got wrong
    rewards = score(model, rows, batch_size=batch_size)
    assert rewards.dtype == torch.float32 and not rewards.requires_grad
    assert (rewards - alone).abs().max() <= 1e-5
    back = score(model, rows[::-1], batch_size=batch_size)
    assert (back.flip(0) - alone).abs().max() <= 1e-5


def test_no_batch_is_larger_than_it_may_be_and_lengths_are_alike_in_each(monkeypatch):
    shapes, rows = [], some_rows()
    model = make_model()
    model.register_forward_pre_hook(lambda module, inputs: shapes.append(tuple(inputs[0].shape)))
    score(model, rows, batch_size=5)
    lengths = sorted(len(ids) for ids, _ in rows)
    assert shapes == [(len(part), max(part)) for part in (lengths[i:i + 5] for i in range(0, len(rows), 5))]


@pytest.mark.parametrize("training", [True, False])
def test_scoring_is_without_dropout_and_leaves_the_model_in_its_mode(training):
    model, rows = make_model(dropout=0.5), some_rows()
    expected = score(model.eval(), rows)
    model.train(training)
    state = torch.get_rng_state()
    assert torch.equal(score(model, rows), expected)
    assert model.training == training and all(module.training == training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_in_bf16_rewards_are_close_and_still_fp32():
    model, rows = make_model(), some_rows()
    exact, rough = score(model, rows), score(model, rows, torch.bfloat16)
    assert rough.dtype == torch.float32
    difference = (rough - exact).abs().max() / exact.std()
    assert 0 < difference < 0.2


def test_no_rows_have_no_rewards():
    assert score(make_model(), []).shape == (0,)


def test_score_responses_pairs_each_prompt_with_its_response():
    model = make_model()
    prompts = ["Tell a story.", said("Sort: red cup", "cup red", "And backwards?"), "What is 2 + 3?"]
    responses = [Response("Ann sat down."), Response("red cup", False), Response("")]
    expected = [score(model, [encode_response(prompt, response, TOKENIZER)]).item()
                for prompt, response in zip(prompts, responses)]
    rewards = score_responses(model, TOKENIZER, prompts, responses)
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5) and math.dist(rewards, rewards.flip(0)) > 0.01
    with pytest.raises(ValueError):
        score_responses(model, TOKENIZER, prompts, responses[:2])
