import pytest
import torch
import torch.nn.functional as F
from torch import nn

from part_1.multi_head import MultiHeadAttention
from part_3 import attention
from part_3.attention import Attention, grouped_attention, short_attention
from part_3.rope import rotation
from tests.part_3.llama_reference import explicit_attention, turn


def leaves(*shapes):
    return [torch.randn(shape, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("H_kv", [1, 2, 4])
@pytest.mark.parametrize("T, S, masked", [(1, 7, False), (1, 7, True), (5, 5, True), (3, 8, True), (3, 8, False)])
def test_equals_explicit_attention_over_repeated_keys_forward_and_backward(H_kv, T, S, masked):
    torch.manual_seed(0)
    mine = leaves((2, 4, T, 6), (2, H_kv, S, 6), (2, H_kv, S, 6))
    other = [leaf.detach().clone().requires_grad_() for leaf in mine]
    mask = None
    if masked:  # rows of the batch differ; no query is left without a key
        mask = torch.rand(2, 1, T, S) < 0.5
        mask[..., 2] = True
    output, expected = grouped_attention(*mine, mask), explicit_attention(*other, mask)
    assert torch.allclose(output, expected, atol=1e-5)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    for ours, theirs in zip(mine, other):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-5)


@pytest.mark.parametrize("H_kv", [1, 2, 4])
def test_causal_hides_the_future_unless_a_mask_says_what_is_seen(H_kv):
    torch.manual_seed(0)
    tensors = leaves((2, 4, 5, 6), (2, H_kv, 5, 6), (2, H_kv, 5, 6))
    causal, everything = torch.ones(5, 5).tril().bool(), torch.ones(5, 5).bool()
    assert torch.allclose(grouped_attention(*tensors, causal=True), explicit_attention(*tensors, causal), atol=1e-5)
    assert torch.allclose(grouped_attention(*tensors, everything, causal=True), explicit_attention(*tensors), atol=1e-5)


@pytest.mark.parametrize("T", [1, 3])
def test_query_head_h_uses_key_value_head_h_over_the_group_size(T):
    # All queries are alike. Key head g points to place g, where value head g holds 11 g (elsewhere 10 g + place): query
    # heads 0 and 1 must read 0, heads 2 and 3 read 11, heads 4 and 5 read 22.
    query, places = torch.full((1, 6, T, 2), 10.0), torch.arange(3.0)
    key = torch.eye(3).mul(20).sub(10)[None, :, :, None].expand(1, 3, 3, 2)
    value = (10 * places[:, None] + places)[None, :, :, None].expand(1, 3, 3, 2)
    heads = grouped_attention(query, key, value)
    assert heads.amin(dim=(2, 3)).tolist() == heads.amax(dim=(2, 3)).tolist() == [[0, 0, 11, 11, 22, 22]]


@pytest.mark.parametrize("bias", [False, True])
def test_with_as_many_key_value_heads_it_is_multi_head_attention(bias):
    torch.manual_seed(0)
    ours, theirs = Attention(12, 3, bias=bias), MultiHeadAttention(12, 3, bias=bias, fused=False)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 5, 12)
    for causal in (True, False):
        assert torch.allclose(ours(x, causal=causal), theirs(x, causal=causal), atol=1e-5)


def by_hand(attention, x, mask, positions, qk_norm):
    """The layer from its weights: rows of qkv are H query heads, then H_kv key heads, then H_kv value heads."""
    B, T, C = x.shape
    D = attention.d_head
    sizes = [C, attention.n_kv_head * D, attention.n_kv_head * D]
    biases = attention.qkv.bias.split(sizes) if attention.qkv.bias is not None else [None] * 3
    query, key, value = (F.linear(x, W, b).reshape(B, T, -1, D).transpose(1, 2)
                         for W, b in zip(attention.qkv.weight.split(sizes), biases))
    if qk_norm:
        query = F.rms_norm(query, (D,), attention.query_norm.weight, 1e-5)
        key = F.rms_norm(key, (D,), attention.key_norm.weight, 1e-5)
    if positions is not None:
        query, key = turn(query, positions), turn(key, positions)
    heads = explicit_attention(query, key, value, mask)
    return F.linear(torch.cat(heads.unbind(1), dim=-1), attention.project.weight, attention.project.bias)


def random_layer(**options):
    torch.manual_seed(0)
    attention = Attention(24, 6, 2, **options)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    return attention, torch.randn(2, 5, 24)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("positions", [None, torch.arange(5) + 3])
def test_the_layer_equals_its_formula(bias, qk_norm, positions):
    attention, x = random_layer(bias=bias, qk_norm=qk_norm)
    mask = (torch.rand(2, 1, 5, 5) < 0.5) | torch.eye(5).bool()
    turned = None if positions is None else rotation(positions, 4)
    assert torch.allclose(attention(x, mask, rotation=turned), by_hand(attention, x, mask, positions, qk_norm), atol=1e-4)
    causal = torch.ones(5, 5).tril().bool()
    assert torch.allclose(attention(x, causal=True, rotation=turned), by_hand(attention, x, causal, positions, qk_norm),
                          atol=1e-4)


def test_eps_of_the_query_and_key_norm_is_1e_5():
    attention, x = random_layer(qk_norm=True)
    query, key, _ = attention.queries_keys_values(1e-3 * x)  # mean squares of about 1e-5
    plain = 1e-3 * F.linear(x, attention.qkv.weight).view(2, 5, 10, 4).transpose(1, 2)
    assert torch.allclose(query, F.rms_norm(plain[:, :6], (4,), attention.query_norm.weight, 1e-5), atol=1e-5)
    assert torch.allclose(key, F.rms_norm(plain[:, 6:8], (4,), attention.key_norm.weight, 1e-5), atol=1e-5)


class ListCache:
    """Keeps what it is given, layer by layer."""

    def __init__(self):
        self.seen = {}

    def update(self, layer, key, value):
        old = self.seen.get(layer)
        self.seen[layer] = (key, value) if old is None else tuple(torch.cat(pair, 2) for pair in zip(old, (key, value)))
        return self.seen[layer]


@pytest.mark.parametrize("rotated_when_read", [False, True])
def test_token_by_token_through_a_cache_equals_the_full_pass(rotated_when_read):
    attention, x = random_layer(qk_norm=True)
    causal, cache, outputs = torch.ones(5, 5).tril().bool(), ListCache(), []
    for t in range(5):
        of_keys = rotation(torch.arange(t + 1), 4) if rotated_when_read else None
        outputs.append(attention(x[:, t:t + 1], rotation=rotation(torch.tensor([t]), 4), key_rotation=of_keys, cache=cache,
                                 layer=3))
    assert torch.allclose(torch.cat(outputs, 1), by_hand(attention, x, causal, torch.arange(5), True), atol=1e-4)
    stored, value = cache.seen[3]
    plain = attention.queries_keys_values(x)[1]
    assert torch.allclose(stored, plain if rotated_when_read else turn(plain, torch.arange(5)), atol=1e-4)
    assert value.shape == (2, 2, 5, 4) and list(cache.seen) == [3]


def test_the_shown_weights_are_those_that_the_output_is_made_with():
    attention, x = random_layer(qk_norm=True)
    mask = torch.ones(5, 5).tril().bool()
    value = F.linear(x, attention.qkv.weight[32:]).view(2, 5, 2, 4)[:, :, [0, 0, 0, 1, 1, 1]]  # (B, T, H, D)
    for positions, turned in ((None, None), (torch.arange(5), rotation(torch.arange(5), 4))):
        weights = attention.attention_weights(x, mask, turned)
        assert weights.shape == (2, 6, 5, 5) and (weights[:, :, ~mask] == 0).all()
        output = F.linear(torch.einsum("bhts,bshd->bthd", weights, value).reshape(2, 5, 24), attention.project.weight)
        assert torch.allclose(output, by_hand(attention, x, mask, positions, True), atol=1e-4)


def test_sharing_makes_keys_and_values_smaller():
    # C = 24, H = 6, D = 4: 24 query rows and 2 H_kv 4 rows of keys and values.
    rows = [Attention(24, 6, n_kv_head).qkv.weight.shape[0] for n_kv_head in (None, 6, 3, 2, 1)]
    assert rows == [72, 72, 48, 40, 32]


@pytest.mark.parametrize("sizes, complaint", [((10, 3), "10.*3"), ((12, 4, 3), "4.*3"), ((12, 4, 8), "4.*8"),
                                              ((12, 4, 0), "4.*0"), ((12, 4, -2), "4.*-2")])
def test_heads_that_do_not_divide_are_refused(sizes, complaint):
    with pytest.raises(ValueError, match=complaint):
        Attention(*sizes)


@pytest.mark.parametrize("T", [1, 3])
def test_dropout_takes_weights_away_in_training_only(T):
    # Zero queries look at all 64 keys alike, and the value of place s is the s-th unit vector: the output is the weights.
    # Those that dropout at 0.25 leaves are 4/3 as large.
    torch.manual_seed(0)

    class UnitValues:
        def update(self, layer, key, value):
            return torch.zeros(128, 1, 64, 64), torch.eye(64).expand(128, 1, 64, 64)

    attention, x = Attention(128, 2, 1, dropout=0.25), torch.randn(128, T, 128)
    attention.qkv.weight.data.zero_()
    attention.project = nn.Identity()
    weights = attention(x, cache=UnitValues()) * 64
    assert (weights == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(weights[weights != 0], torch.tensor(4 / 3))
    assert torch.allclose(attention.eval()(x, cache=UnitValues()) * 64, torch.ones(128, T, 128))


@pytest.mark.parametrize("H_kv", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 5, 300])  # with 300 tokens and four heads a piece holds two rows of the batch
def test_short_attention_equals_explicit_attention_forward_and_backward(H_kv, T):
    torch.manual_seed(0)
    mine = leaves((5, 4, T, 6), (5, H_kv, T, 6), (5, H_kv, T, 6))
    other = [leaf.detach().clone().requires_grad_() for leaf in mine]
    output, expected = short_attention(*mine), explicit_attention(*other, torch.ones(T, T).tril().bool())
    assert torch.allclose(output, expected, atol=1e-5)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    for ours, theirs in zip(mine, other):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)


def test_short_attention_drops_weights_and_makes_up_for_them():
    torch.manual_seed(0)
    query, key = torch.zeros(1, 1, 4000, 2), torch.zeros(1, 1, 4000, 2)  # all weights alike: token i gives each 1 / (i + 1)
    heads = short_attention(query, key, torch.ones(1, 1, 4000, 1).expand(1, 1, 4000, 2), dropout=0.25)
    # Each kept weight is 1 / 0.75 of what it was, so the sum of n of them is one on average, with variance (1/3) / n.
    assert heads[0, 0, 2000:, 0].mean().item() == pytest.approx(1, abs=0.003)
    assert heads[0, 0, 2000:, 0].std().item() == pytest.approx((1 / 3 / 3000) ** 0.5, rel=0.15)


def rows_of_text(B, T):
    """A mask (B, 1, T, T) in which each row of the batch has texts of its own, causal and apart from each other."""
    texts = torch.randint(2, (B, T)).cumsum(dim=1)
    return ((texts[:, :, None] == texts[:, None, :]) & torch.ones(T, T).tril().bool())[:, None]


@pytest.mark.parametrize("H_kv", [1, 2, 4])
@pytest.mark.parametrize("T", [1, 7, 300])  # as above: the last in pieces, each with its own rows of the mask
@pytest.mark.parametrize("kind", ["(T, T)", "(1, 1, T, T)", "(B, 1, T, T)", "(B, 1, 1, T)"])
def test_short_attention_with_a_mask_equals_explicit_attention_forward_and_backward(kind, T, H_kv):
    torch.manual_seed(0)
    mine = [torch.randn(5, H, T, 6, dtype=torch.double, requires_grad=True) for H in (4, H_kv, H_kv)]
    other = [leaf.detach().clone().requires_grad_() for leaf in mine]
    mask = {"(T, T)": torch.rand(T, T) < 0.5, "(1, 1, T, T)": torch.rand(1, 1, T, T) < 0.5,
            "(B, 1, T, T)": rows_of_text(5, T), "(B, 1, 1, T)": torch.rand(5, 1, 1, T) < 0.5}[kind]
    if kind != "(B, 1, T, T)":
        mask[..., T // 2] = True  # no query is left without a key; and not causal
    output, expected = short_attention(*mine, mask), explicit_attention(*other, mask)
    assert output.dtype == torch.double and torch.allclose(output, expected, atol=1e-10)
    grad = torch.randn_like(output)
    output.backward(grad)
    expected.backward(grad)
    for ours, theirs in zip(mine, other):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-10)


def test_short_attention_drops_weights_of_what_the_mask_shows():
    torch.manual_seed(0)
    query, value = torch.zeros(1, 1, 400, 400), torch.eye(400)[None, None]  # the output is the weights
    mask = torch.arange(400)[:, None] % 2 == torch.arange(400) % 2  # half of the keys, each a weight of 1 / 200
    weights = short_attention(query, query, value, mask, 0.25)[0, 0]
    assert (weights[~mask] == 0).all() and (weights[mask] == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert torch.allclose(weights[mask][weights[mask] > 0], torch.tensor(1 / 0.75 / 200))


@pytest.mark.parametrize("T, dtype, grad, taken", [
    (512, torch.bfloat16, True, True), (513, torch.bfloat16, True, False), (8, torch.float32, True, False),
    (8, torch.bfloat16, False, False)])
def test_short_attention_serves_training_in_bf16_on_short_texts_alone(T, dtype, grad, taken, monkeypatch):
    calls = []
    monkeypatch.setattr(attention, "short_attention", lambda *arguments: calls.append(arguments[3:]) or arguments[0])
    tensors = [torch.zeros(1, 1, T, 2, dtype=dtype) for _ in range(3)]
    mask = torch.ones(T, T, dtype=torch.bool)
    with torch.set_grad_enabled(grad):
        grouped_attention(*tensors)  # neither a mask nor causal: it would hide the future
        assert calls == []
        grouped_attention(*tensors, causal=True, dropout=0.25)
        assert calls == [(None, 0.25)] * taken
        grouped_attention(*tensors, mask)
        grouped_attention(*tensors, mask, causal=True)  # the mask comes before causal
        assert len(calls) == 3 * taken and all(call[0] is mask for call in calls[1:])


def test_short_attention_is_for_as_many_queries_as_keys(monkeypatch):
    monkeypatch.setattr(attention, "short_attention", None)  # to call it would be an error
    query, key = torch.zeros(1, 2, 3, 2, dtype=torch.bfloat16), torch.zeros(1, 2, 5, 2, dtype=torch.bfloat16)
    assert grouped_attention(query, key, key, torch.ones(3, 5, dtype=torch.bool)).shape == (1, 2, 3, 2)


def test_short_attention_in_bf16_is_close_to_fp32():
    torch.manual_seed(0)
    tensors = [torch.randn(3, H, 128, 32) for H in (4, 2, 2)]
    exact = explicit_attention(*tensors, torch.ones(128, 128).tril().bool())
    rounded = short_attention(*(tensor.bfloat16() for tensor in tensors)).float()
    assert (rounded - exact).abs().mean() / exact.abs().mean() < 0.01  # bf16 rounds by up to 1/256
