"""Lesson 7.2: the encoder against its blocks run by hand, pooling, padding, and the scale of the rewards."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from part_0.cli import InputError
from part_2.checkpoint import save_checkpoint
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_3.rope import rotate
from part_4.bpe_tokenizer import BPETokenizer
from part_4.optimizer import Muon, build_optimizers
from part_5.hybrid import HybridConfig, hybrid_gpt
from part_7.reward_model import POOLINGS, RewardModel, build_reward_model, load_reward_model
from part_7.scoring import reward_batch

SHAPE = dict(vocab_size=40, block_size=16, n_layer=3, n_head=4, d_model=24, n_kv_head=2, qk_norm=True)
TOKENS = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(0))
AT = torch.arange(16).expand(2, -1)
ANSWER = AT >= 9
EVERY = pytest.mark.parametrize("pooling, causal", [(pooling, causal) for pooling in POOLINGS for causal in (False, True)])


def make_model(pooling="mean", causal=False, seed=0, **options):
    """Weights large enough for attention to be far from uniform, and a head far from zero."""
    torch.manual_seed(seed)
    model = RewardModel(ModernGPT(ModernGPTConfig(**{**SHAPE, **options})), pooling, causal).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def rows_of(lengths, seed=0):
    """Rows as of encode_response, of these (prompt, answer) lengths."""
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randint(40, (before + own,), generator=generator).tolist(), [0] * before + [1] * own)
            for before, own in lengths]


# ---- the encoder ----

@torch.no_grad()
def test_the_encoder_is_the_decoder_s_blocks_run_without_any_mask():
    model = make_model()
    encoder = model.encoder
    x = encoder.token_embedding(TOKENS)
    for block in encoder.blocks:
        query, key, value = block.attention.queries_keys_values(block.norm_1(x))
        query, key = (rotate(part, encoder.rotation(AT)) for part in (query, key))
        key, value = (part.repeat_interleave(2, dim=1) for part in (key, value))  # two query heads share one
        heads = F.scaled_dot_product_attention(query, key, value)  # no mask, not causal
        x = x + block.attention.project(heads.transpose(1, 2).flatten(2))
        x = x + block.feed_forward(block.norm_2(x))
    assert (model.hidden_states(TOKENS, AT) - encoder.norm(x)).abs().max() <= 1e-5


@torch.no_grad()
def test_causal_it_is_the_decoder():
    torch.manual_seed(0)
    decoder = ModernGPT(ModernGPTConfig(**SHAPE)).eval()
    expected = decoder.hidden_states(TOKENS)
    model = RewardModel(decoder, "last", causal=True)
    assert (model.hidden_states(TOKENS, AT) - expected).abs().max() <= 1e-5
    assert (RewardModel(decoder).hidden_states(TOKENS, AT) - expected).abs().max() > 0.01


@EVERY
@torch.no_grad()
def test_which_tokens_a_reward_depends_on(pooling, causal):
    # The mean over the answer, or its last token: either has seen the whole text before it, with or without the mask.
    # But the states of the prompt have seen the answer only without the mask.
    model, changed = make_model(pooling, causal), TOKENS.clone()
    changed[:, 15] = (changed[:, 15] + 1) % 40
    moved = (model.hidden_states(TOKENS, AT) - model.hidden_states(changed, AT)).abs().amax(-1)
    assert (moved[:, :15].amax() == 0) == causal and moved[:, 15].min() > 1e-3
    for place in range(16):
        other = TOKENS.clone()
        other[:, place] = (other[:, place] + 1) % 40
        assert (model(TOKENS, AT, ANSWER) - model(other, AT, ANSWER)).abs().min() > 1e-6


def test_the_encoder_starts_from_the_weights_of_the_fine_tuned_model():
    torch.manual_seed(0)
    policy = ModernGPT(ModernGPTConfig(**SHAPE))
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    weights = RewardModel(policy).state_dict()
    encoder = {name.removeprefix("encoder."): value for name, value in weights.items() if name.startswith("encoder.")}
    assert set(encoder) == set(before) - {"head.weight"}  # the names are the decoder's; its head is gone
    assert all(torch.equal(encoder[name], before[name]) for name in encoder)
    assert set(weights) - {f"encoder.{name}" for name in encoder} == {"score.weight", "gain", "bias"}


# ---- pooling ----

@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_mean_pooling_by_hand(causal):
    model, hidden = make_model("mean", causal), make_model("mean", causal).hidden_states(TOKENS, AT)
    answer = torch.zeros(2, 16, dtype=torch.bool)
    answer[0, 12:] = answer[1, 7] = True  # four tokens and one; not only at the end
    means = [(hidden[0, 12] + hidden[0, 13] + hidden[0, 14] + hidden[0, 15]) / 4, hidden[1, 7]]
    expected = [sum(w * h for w, h in zip(model.score.weight[0].tolist(), mean.tolist())) for mean in means]
    assert model(TOKENS, AT, answer).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("causal", [False, True])
@torch.no_grad()
def test_last_pooling_takes_the_last_real_token(causal):
    model = make_model("last", causal)
    rows = rows_of([(3, 4), (1, 1), (9, 2), (4, 12)])
    tokens, positions, answer = reward_batch(rows)
    hidden = model.hidden_states(tokens, positions)
    expected = torch.stack([hidden[row, place] @ model.score.weight[0] for row, place in enumerate((6, 1, 10, 15))])
    assert (model(tokens, positions, answer) - expected).abs().max() <= 1e-5
    # Padding on the left, as in generation: the last place is the last token.
    tokens, positions = tokens.roll(9, 1)[:1], positions.roll(9, 1)[:1]
    assert positions[0].tolist() == [-1] * 9 + list(range(7))
    assert (model(tokens, positions, positions > 2) - expected[:1]).abs().max() <= 1e-5


def test_another_pooling_is_refused():
    with pytest.raises(ValueError, match="pooling must be one of mean, last, not max"):
        make_model("max")


# ---- padding ----

@EVERY
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6), st.integers(0, 99))
def test_a_reward_is_the_same_alone_and_in_any_batch(pooling, causal, lengths, seed):
    model, rows = make_model(pooling, causal), rows_of([*lengths, (1, 1), (120, 80)], seed)
    with torch.no_grad():
        together = model(*reward_batch(rows))
        alone = torch.cat([model(*reward_batch([row])) for row in rows])
    assert (together - alone).abs().max() <= 1e-5


@EVERY
@pytest.mark.parametrize("options", [dict(), dict(window=3, sinks=1), dict(positions="learned", n_kv_head=4)], ids=str)
@torch.no_grad()
def test_whatever_stands_in_padding_on_either_side_changes_no_reward(pooling, causal, options):
    model = make_model(pooling, causal, **options)
    [(ids, is_answer)] = rows_of([(4, 3)])
    alone = model(*reward_batch([(ids, is_answer)]))
    generator = torch.Generator().manual_seed(1)
    for start in (0, 5, 9):
        tokens = torch.randint(40, (8, 16), generator=generator)  # garbage
        positions, answer = torch.full((8, 16), -1), torch.zeros(8, 16, dtype=torch.bool)
        place = slice(start, start + 7)
        tokens[:, place], positions[:, place] = torch.tensor(ids), torch.arange(7)
        answer[:, place] = torch.tensor(is_answer) == 1
        assert (model(tokens, positions, answer) - alone).abs().max() <= 1e-5


def test_gradients_do_not_come_from_padding_or_from_other_rows():
    rows, gradients = rows_of([(3, 2), (50, 40)]), []
    for batch in (rows[:1], rows):
        model = make_model()
        model(*reward_batch(batch))[0].backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-4, atol=1e-5, msg=name)


# ---- the head and its scale ----

@EVERY
@torch.no_grad()
def test_the_first_rewards_are_near_zero_but_not_zero(pooling, causal):
    # The final norm gives every token a vector of mean square 1: w . h has spread 0.01 sqrt(128) = 0.11.
    rewards = []
    for seed in range(20):
        torch.manual_seed(seed)
        model = RewardModel(ModernGPT(ModernGPTConfig(40, 16, 2, 4, 128)), pooling, causal).eval()
        assert model.gain == 1 and model.bias == 0
        rewards.append(model(TOKENS, AT, ANSWER))
    rewards = torch.cat(rewards)
    assert rewards.abs().max() < 0.5 and 0.01 < rewards.std() < 0.2
    torch.manual_seed(0)
    head = RewardModel(ModernGPT(ModernGPTConfig(40, 16, 1, 4, 4096, d_hidden=8))).score.weight
    assert head.std().item() == pytest.approx(0.01, rel=0.05) and head.shape == (1, 4096)


@torch.no_grad()
def test_gain_and_bias_by_hand():
    model = make_model()
    plain = model(TOKENS, AT, ANSWER)
    model.gain.fill_(2.5)
    model.bias.fill_(-0.75)
    assert torch.allclose(model(TOKENS, AT, ANSWER), 2.5 * plain - 0.75, atol=1e-5)
    assert not any(name in dict(model.named_parameters()) for name in ("gain", "bias"))  # no optimizer moves them


@EVERY
@torch.no_grad()
def test_normalised_rewards_have_mean_0_and_spread_1_also_the_second_time(pooling, causal):
    model = make_model(pooling, causal)
    batch = reward_batch(rows_of([(i % 7 + 1, i % 5 + 1) for i in range(40)]))
    model.gain.fill_(3.0)
    model.bias.fill_(-2.0)
    before = model(*batch)
    model.normalise(before)
    after = model(*batch)
    assert after.mean().item() == pytest.approx(0, abs=1e-5) and after.std().item() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(after, (before - before.mean()) / before.std(), atol=1e-4)
    assert model.gain > 0  # the order stays
    model.normalise(after)
    assert torch.allclose(model(*batch), after, atol=1e-5)


@torch.no_grad()
def test_normalise_by_hand():
    model = make_model()
    model.gain.fill_(2.0)
    model.bias.fill_(1.0)
    model.normalise(torch.tensor([1.0, 3.0, 5.0]))  # mean 3, spread sqrt((4 + 0 + 4) / 2) = 2
    assert (model.gain.item(), model.bias.item()) == pytest.approx((1.0, -1.0))


@pytest.mark.parametrize("rewards", [
    *(torch.full((n,), value) for n in (2, 7, 100, 1000) for value in (0.0, 0.1, 1 / 3, -7.7)),
    0.1 + 1e-8 * torch.arange(9), torch.tensor([1.0, 2.0, math.nan]), torch.full((4,), math.nan),
    torch.tensor([1.0, 2.0, math.inf]), torch.tensor([1.0, -math.inf])], ids=str)
def test_equal_rewards_or_no_numbers_are_refused_and_leave_the_scale(rewards):
    model = make_model()
    with pytest.raises(InputError, match="same reward, or no number .* try a smaller --lr") as caught:
        model.normalise(rewards)
    assert "\n" not in str(caught.value) and model.gain == 1 and model.bias == 0


@torch.no_grad()
def test_rewards_that_differ_little_are_a_scale_too():
    model, rewards = make_model(), 5 + torch.tensor([0.0, 0.01, 0.02])
    model.normalise(rewards)
    assert (model.gain * rewards + model.bias).tolist() == pytest.approx([-1, 0, 1], abs=1e-3)


@EVERY
@torch.no_grad()
def test_under_autocast_the_reward_itself_is_fp32(pooling, causal):
    # In bf16 a reward near 4 would be a multiple of 1/32: answers that differ would tie.
    model = make_model(pooling, causal)
    with torch.autocast("cpu", torch.bfloat16):
        rewards = model(TOKENS, AT, ANSWER)
    assert rewards.dtype == torch.float32 and not torch.equal(rewards, rewards.bfloat16().float())


def test_under_autocast_gradients_reach_every_weight():
    model = make_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        rewards = model(TOKENS, AT, ANSWER)
    (rewards[0] - rewards[1]).backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any()
               for parameter in model.parameters())


# ---- optimizers and checkpoints ----

@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_the_optimizers_hold_every_weight_once_and_muon_the_encoder_s_matrices(name, tie):
    model = make_model(tie_embeddings=tie)
    optimizers = build_optimizers(model, name, 1e-3, 0.95, 0.1)
    held = [id(weight) for optimizer in optimizers for group in optimizer.param_groups for weight in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in model.parameters())
    by_muon = {id(weight) for optimizer in optimizers if isinstance(optimizer, Muon)
               for group in optimizer.param_groups for weight in group["params"]}
    matrices = {id(weight) for name, weight in model.named_parameters() if ".blocks." in name and weight.ndim == 2}
    assert len(matrices) == 3 * 4  # qkv, project, expand, contract
    assert by_muon == (matrices if name == "muon" else set())


def test_number_of_weights():
    # Embedding 40 * 24; a block: norms 2 * 24, qkv 24 * (4 + 2 * 2) * 6, QK-norms 6 + 6, project 24 * 24, SwiGLU
    # 3 * 24 * 64; the last norm 24; the new head 24, and none of the decoder's.
    assert make_model().n_params() == 960 + 3 * (48 + 1152 + 12 + 576 + 4608) + 24 + 24


@EVERY
@pytest.mark.parametrize("options", [dict(), dict(window=4, sinks=2, tie_embeddings=True), dict(positions="learned")],
                         ids=str)
@torch.no_grad()
def test_sizes_rebuild_the_model(pooling, causal, options):
    model = make_model(pooling, causal, **options)
    sizes = model.sizes()
    assert sizes == {**dataclasses.asdict(model.encoder.config), "pooling": pooling, "causal": causal}
    again = build_reward_model(sizes).eval()
    assert sizes["pooling"] == pooling  # the dict, which belongs to a checkpoint, is as it was
    assert (again.pooling, again.causal, again.encoder.config) == (pooling, causal, model.encoder.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(TOKENS, AT, ANSWER), model(TOKENS, AT, ANSWER))


def test_a_model_with_experts_is_rebuilt_as_one():
    torch.manual_seed(0)
    config = HybridConfig(40, 16, 2, 4, 24, n_expert=4)
    model = RewardModel(hybrid_gpt(config)).eval()
    again = build_reward_model(model.sizes()).eval()
    again.load_state_dict(model.state_dict())
    assert again.encoder.config == config and torch.equal(again(TOKENS, AT, ANSWER), model(TOKENS, AT, ANSWER))


@EVERY
@torch.no_grad()
def test_the_scale_survives_a_checkpoint(pooling, causal, tmp_path):
    tokenizer = BPETokenizer({bytes([i]): i for i in range(256)}, ("<|end|>",))
    model = make_model(pooling, causal, vocab_size=tokenizer.vocab_size)
    batch = reward_batch(rows_of([(i % 7 + 1, i % 5 + 1) for i in range(40)]))
    model.normalise(model(*batch))
    save_checkpoint(tmp_path / "best.pt", {"step": 7, "model": model.state_dict(), "model_config": model.sizes(),
                                           "tokenizer": tokenizer.state()})
    loaded, read, state = load_reward_model(tmp_path / "best.pt")
    rewards = loaded(*batch)
    assert torch.equal(rewards, model(*batch)) and not loaded.training and state["step"] == 7
    assert rewards.mean().abs() <= 1e-5 and abs(rewards.std() - 1) <= 1e-5
    assert loaded.gain != 1 and read.encode("Ann sat.") == tokenizer.encode("Ann sat.")


def test_a_missing_checkpoint_and_a_fine_tuned_model_are_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoint .*none.pt; make one with: python3 part_7/train_reward_model.py"):
        load_reward_model(tmp_path / "none.pt")
    policy, tokenizer = ModernGPT(ModernGPTConfig(**SHAPE)), BPETokenizer({bytes([i]): i for i in range(256)})
    save_checkpoint(tmp_path / "sft.pt", {"model": policy.state_dict(), "model_config": dataclasses.asdict(policy.config),
                                          "tokenizer": tokenizer.state()})
    with pytest.raises(InputError, match="sft.pt is no checkpoint of part_7/train_reward_model.py, but of another model"):
        load_reward_model(tmp_path / "sft.pt")
