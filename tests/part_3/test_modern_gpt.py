"""The identity ladder: with every piece switched back ModernGPT is Part 2's GPT, and each new piece, turned to its
harmless end, is the old one."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from part_1.positional_encoding import sinusoidal_table
from part_2.gpt import GPT, GPTConfig
from part_3.modern_gpt import ModernGPT, ModernGPTConfig, attention_maps, reread

SHAPE = dict(vocab_size=40, block_size=16, n_layer=3, n_head=4, d_model=24)
SWITCHED_BACK = dict(norm="layernorm", positions="learned", mlp="gelu", bias=True)
TOKENS = torch.randint(40, (2, 16), generator=torch.Generator().manual_seed(0))


def make_model(seed=0, **options):
    """Weights large enough for attention to be far from uniform, norms and biases other than their first values."""
    torch.manual_seed(seed)
    model = ModernGPT(ModernGPTConfig(**{**SHAPE, **options})).eval()
    return with_large_weights(model)


def with_large_weights(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, 0.2)
    return model


def twins(options, other):
    """Two models of different configs with the same weights."""
    first = make_model(**options)
    second = ModernGPT(ModernGPTConfig(**{**SHAPE, **other})).eval()
    second.load_state_dict(first.state_dict())
    return first, second


def gpt_and_modern(**options):
    torch.manual_seed(0)
    gpt = with_large_weights(GPT(GPTConfig(**SHAPE, **options))).eval()
    modern = ModernGPT(ModernGPTConfig(**SHAPE, **{**SWITCHED_BACK, **options})).eval()
    modern.load_state_dict(gpt.state_dict())  # strictly: the same names and shapes
    return gpt, modern


@pytest.mark.parametrize("options", [dict(), dict(tie_embeddings=True), dict(positions="sinusoidal"), dict(bias=False)])
def test_switched_back_it_is_part_2_s_gpt_logits_and_gradients(options):
    gpt, modern = gpt_and_modern(**options)
    logits, expected = modern(TOKENS), gpt(TOKENS)
    assert (logits - expected).abs().max() <= 1e-5
    logits.logsumexp(-1).mean().backward()
    expected.logsumexp(-1).mean().backward()
    for (name, mine), (_, theirs) in zip(modern.named_parameters(), gpt.named_parameters()):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-5), name


def test_switched_back_it_has_the_gpt_s_names_and_starts_from_the_same_weights():
    states = []
    for model_class, config in ((GPT, GPTConfig(**SHAPE)), (ModernGPT, ModernGPTConfig(**SHAPE, **SWITCHED_BACK))):
        torch.manual_seed(0)
        states.append(model_class(config).state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_dropout_falls_where_the_gpt_s_falls_and_only_in_training():
    gpt, modern = gpt_and_modern(dropout=0.3)
    logits = []
    for model in (gpt, modern):
        torch.manual_seed(5)
        logits.append(model.train()(TOKENS))
    assert torch.allclose(*logits, atol=1e-5)
    assert not torch.allclose(logits[1], modern(TOKENS), atol=0.1)  # another draw
    assert torch.allclose(modern.eval()(TOKENS), gpt_and_modern()[0](TOKENS), atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("kind", ["static", "rolling"])
def test_added_positions_work_with_caches_and_padding(positions, kind):
    gpt, modern = gpt_and_modern(positions=positions)
    if kind == "rolling":
        modern = ModernGPT(dataclasses.replace(modern.config, window=16)).eval()
        modern.load_state_dict(gpt.state_dict())
    cache = modern.new_cache(kind, 2, 16)
    rows = torch.tensor([[*range(8)], [-1, -1, -1, *range(5)]])
    logits = [modern(TOKENS[:, :8], rows, cache), *(modern(TOKENS[:, t:t + 1], None, cache) for t in range(8, 16))]
    logits = torch.cat(logits, dim=1)
    assert torch.allclose(logits[:1], gpt(TOKENS[:1]), atol=1e-4)
    assert torch.allclose(logits[1:, 3:], gpt(TOKENS[1:, 3:]), atol=1e-4)


def test_as_many_key_value_heads_as_heads_is_multi_head_attention():
    assert ModernGPTConfig(**SHAPE).n_kv_head == 4
    first, second = twins(dict(), dict(n_kv_head=4))
    assert torch.equal(first(TOKENS), second(TOKENS))
    # Two heads that share one are four heads of which two and two are alike: q 0-3, then k 0 0 1 1, then v 0 0 1 1.
    grouped, whole = make_model(n_kv_head=2), make_model()
    state = grouped.state_dict()
    for name in [name for name in state if "qkv" in name]:
        heads = state[name].view(8, 6, 24)
        state[name] = heads[[0, 1, 2, 3, 4, 4, 5, 5, 6, 6, 7, 7]].flatten(0, 1)
    whole.load_state_dict(state)
    assert torch.allclose(grouped(TOKENS), whole(TOKENS), atol=1e-5)


@pytest.mark.parametrize("window, sinks, same", [(16, 0, True), (99, 3, True), (12, 4, True), (15, 0, False),
                                                 (11, 4, False)])
def test_a_window_no_shorter_than_the_text_is_full_attention(window, sinks, same):
    full, windowed = twins(dict(), dict(window=window, sinks=sinks))
    difference = (full(TOKENS) - windowed(TOKENS)).abs().amax(-1)
    assert difference[:, :15].max() <= 1e-5
    assert (difference[:, 15].min() > 1e-3) != same


def test_a_rolling_cache_that_has_not_turned_yet_is_the_static_one():
    model = make_model(window=12, sinks=4)
    caches = [model.new_cache(kind, 2, 16) for kind in ("static", "rolling")]
    for start, end in ((0, 7), (7, 8), (8, 9), (9, 16)):
        static, rolling = (model(TOKENS[:, start:end], None, cache) for cache in caches)
        assert torch.allclose(static, rolling, atol=1e-5)


def test_qk_norm_takes_the_length_out_of_the_queries_and_keys():
    for qk_norm, changes in ((True, False), (False, True)):
        model = make_model(qk_norm=qk_norm)
        before = model(TOKENS)
        with torch.no_grad():
            for block in model.blocks:
                block.attention.qkv.weight[:48] *= 30  # queries and keys, not values
        assert ((before - model(TOKENS)).abs().max() > 0.1) == changes


def test_blocks_whose_last_projections_are_zero_leave_the_residual_stream_as_it_was():
    model = make_model()
    with torch.no_grad():
        for block in model.blocks:
            block.attention.project.weight.zero_()
            block.feed_forward.contract.weight.zero_()
        x = model.token_embedding(TOKENS)
        expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * model.norm.weight
        assert torch.allclose(model.hidden_states(TOKENS), expected, atol=1e-5)


def test_the_last_norm_gives_vectors_of_length_one_and_the_head_reads_them():
    model = make_model()
    with torch.no_grad():
        hidden = model.hidden_states(TOKENS)
        assert torch.allclose(model(TOKENS), hidden @ model.head.weight.T, atol=1e-5)
        model.norm.weight.fill_(1.0)
        assert torch.allclose(model.hidden_states(TOKENS).square().mean(-1).sqrt(), torch.ones(2, 16), atol=1e-3)


def test_rope_sees_distances_and_a_table_sees_places():
    shifted = torch.arange(5, 15).expand(2, -1)
    rope, learned = make_model(), make_model(positions="learned")
    assert torch.allclose(rope(TOKENS[:, :10], shifted), rope(TOKENS[:, :10]), atol=1e-4)
    before, after = learned(TOKENS[:, :10]), learned(TOKENS[:, :10], shifted)
    assert not torch.allclose(before, after, atol=0.1)
    with torch.no_grad():
        learned.position_embedding.weight.copy_(learned.position_embedding.weight.roll(-5, 0))
    assert torch.allclose(learned(TOKENS[:, :10]), after, atol=1e-5)


def test_the_rotary_options_reach_the_rotation():
    plain, scaled = twins(dict(), dict(rope_scale=3.0))
    assert torch.allclose(plain(TOKENS), scaled(TOKENS, 3 * torch.arange(16).expand(2, -1)), atol=1e-4)
    assert not torch.allclose(plain(TOKENS), scaled(TOKENS), atol=0.1)
    # With 2 columns a head there is one pair and one speed, 1, whatever the base; with 6 there are three.
    for n_head, same in ((12, True), (4, False)):
        low, high = twins(dict(n_head=n_head), dict(n_head=n_head, rope_base=5.0))
        assert torch.allclose(low(TOKENS), high(TOKENS), atol=1e-4) == same
    # Pairs (0, 1), (2, 3), (4, 5) instead of (0, 3), (1, 4), (2, 5): the same once the columns are put in that order.
    half, interleaved = twins(dict(), dict(rope_pairing="interleaved"))
    assert not torch.allclose(half(TOKENS), interleaved(TOKENS), atol=0.1)
    with torch.no_grad():
        for block in interleaved.blocks:
            weight = block.attention.qkv.weight
            weight[:48] = weight[:48].view(8, 6, 24)[:, [0, 3, 1, 4, 2, 5]].flatten(0, 1)
    assert torch.allclose(half(TOKENS), interleaved(TOKENS), atol=1e-4)


def test_without_positions_the_order_of_the_tokens_before_makes_no_difference():
    swapped = TOKENS[:, [1, 0, *range(2, 16)]]
    for positions, same in (("none", True), ("rope", False)):
        model = make_model(n_layer=1, positions=positions)  # with more layers the causal mask would tell the order
        assert torch.allclose(model(TOKENS)[:, 2:], model(swapped)[:, 2:], atol=1e-4) == same


def test_sinusoidal_positions_are_the_table_of_lesson_1_1_and_learned_ones_are_weights():
    sinusoidal = make_model(positions="sinusoidal")
    expected = sinusoidal.token_embedding(TOKENS) + sinusoidal_table(16, 24)
    assert torch.allclose(sinusoidal.embed(TOKENS, torch.arange(16)), expected)
    assert make_model(positions="learned").n_params() - sinusoidal.n_params() == 16 * 24
    assert make_model(positions="rope").n_params() == make_model(positions="none").n_params() == sinusoidal.n_params()


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_a_table_of_positions_ends_and_rotary_ones_do_not(positions):
    longer = torch.zeros(1, 17, dtype=torch.long)
    model = make_model(positions=positions)
    with pytest.raises(ValueError, match="17 tokens.*16"):
        model(longer)
    cache = model.new_cache("static", 1, 20)
    model(longer[:, :16], None, cache)
    with pytest.raises(ValueError, match="17 tokens.*16"):
        model(longer[:, :1], None, cache)
    assert make_model()(longer).shape == (1, 17, 40)


REFUSED = [(dict(vocab_size=0), "vocab_size.*0"), (dict(block_size=0), "block_size.*0"), (dict(n_layer=-1), "n_layer.*-1"),
           (dict(n_head=0), "n_head.*0"), (dict(d_model=0), "d_model.*0"), (dict(n_kv_head=0), "n_kv_head.*0"),
           (dict(d_hidden=0), "d_hidden.*0"), (dict(n_head=5), "24.*divisible.*5"), (dict(n_kv_head=3), "4.*divisible.*3"),
           (dict(norm="batch"), "norm.*rmsnorm, layernorm.*batch"), (dict(positions="x"), "positions.*rope.*x"),
           (dict(mlp="relu"), "mlp.*swiglu, gelu.*relu"), (dict(rope_pairing="x"), "rope_pairing.*half.*x"),
           (dict(n_head=8), "even.*3"), (dict(rope_base=1.0), "rope_base.*1.0"), (dict(rope_scale=0.0), "rope_scale.*0.0"),
           (dict(window=0), "window.*0"), (dict(window=4, sinks=-1), "sinks.*-1"), (dict(sinks=2), "sinks.*2"),
           (dict(dropout=1.0), "dropout.*1.0"), (dict(dropout=-0.1), "dropout.*-0.1")]


@pytest.mark.parametrize("change, complaint", REFUSED)
def test_a_shape_that_cannot_be_built_is_refused(change, complaint):
    with pytest.raises(ValueError, match=complaint):
        ModernGPTConfig(**{**SHAPE, **change})


def test_shapes_at_the_edge_are_built():
    ModernGPTConfig(**{**SHAPE, "n_head": 8}, positions="learned")  # an odd head width only matters to rotary positions
    ModernGPTConfig(vocab_size=1, block_size=1, n_layer=1, n_head=1, d_model=2, d_hidden=1, window=1, sinks=0)


@pytest.mark.parametrize("options, n_params", [
    # Embedding and head 40 * 24 each. A block: norms 2 * 24; qkv 24 * (4 + 2 * 2) * 6 = 1152; project 24 * 24 = 576;
    # SwiGLU 3 * 24 * 64 = 4608 (64 = 8/3 * 24): 6384. The last norm 24.
    (dict(n_kv_head=2), 2 * 960 + 3 * 6384 + 24),
    (dict(n_kv_head=2, tie_embeddings=True), 960 + 3 * 6384 + 24),
    (dict(n_kv_head=2, qk_norm=True), 2 * 960 + 3 * (6384 + 6 + 6) + 24),
    (dict(n_kv_head=2, d_hidden=10), 2 * 960 + 3 * (6384 - 3 * 24 * 54) + 24),
    # With 4 key-value heads qkv has 24 * 12 * 6 = 1728; GELU at 4 * 24 = 96 has 2 * 24 * 96, as many as SwiGLU.
    (dict(mlp="gelu"), 2 * 960 + 3 * (6384 + 576) + 24),
    # Biases: LayerNorms 24 each, qkv 48, project 24, expand 128, contract 24.
    (dict(n_kv_head=2, bias=True), 2 * 960 + 3 * (6384 + 48 + 24 + 128 + 24) + 24),
    (dict(n_kv_head=2, bias=True, norm="layernorm"), 2 * 960 + 3 * (6384 + 2 * 24 + 48 + 24 + 128 + 24) + 24 + 24),
])
def test_number_of_weights(options, n_params):
    assert ModernGPT(ModernGPTConfig(**SHAPE, **options)).n_params() == n_params


def test_initialisation_keeps_the_residual_stream_from_growing_with_depth():
    torch.manual_seed(0)
    model = ModernGPT(ModernGPTConfig(vocab_size=300, block_size=64, n_layer=8, n_head=4, d_model=96, n_kv_head=2))
    for block in model.blocks:
        for linear in (block.attention.project, block.feed_forward.contract):
            assert linear.weight.std().item() == pytest.approx(0.02 / math.sqrt(16), rel=0.05)
        for linear in (block.attention.qkv, block.feed_forward.expand):
            assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert (block.norm_1.weight == 1).all() and (block.norm_2.weight == 1).all()
    for matrix in (model.token_embedding, model.head):
        assert matrix.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_tied_embeddings_are_one_matrix():
    model = ModernGPT(ModernGPTConfig(**SHAPE, tie_embeddings=True))
    assert model.head.weight is model.token_embedding.weight


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_every_norm_has_the_eps_of_the_config(norm):
    model = make_model(norm=norm, norm_eps=0.25, bias=norm == "layernorm")
    norms = [model.norm, *(n for block in model.blocks for n in (block.norm_1, block.norm_2))]
    x = torch.full((24,), 2.0)
    x[::2] = -2.0  # mean 0, mean square 4
    for n in norms:
        expected = x / math.sqrt(4.25) * n.weight + (n.bias if norm == "layernorm" else 0)
        assert torch.allclose(n(x), expected, atol=1e-5)


def test_a_finished_model_is_reread_only_with_what_its_weights_do_not_depend_on():
    model = ModernGPT(ModernGPTConfig(50, 16, 1, 2, 8))
    tokens = torch.randint(50, (1, 12), generator=torch.Generator().manual_seed(0))
    narrow = reread(model, window=3)
    assert narrow.head is model.head and model.config.window is None
    assert torch.equal(narrow(tokens)[:, :3], model(tokens)[:, :3])
    assert not torch.equal(narrow(tokens)[:, 3:], model(tokens)[:, 3:])
    with pytest.raises(ValueError, match="n_layer, norm cannot"):
        reread(model, norm="layernorm", n_layer=2, window=3)


def test_a_static_cache_needs_a_capacity():
    with pytest.raises(ValueError, match="capacity"):
        ModernGPT(ModernGPTConfig(50, 16, 1, 2, 8)).new_cache("static", 1)


def test_the_eps_of_the_config_is_that_of_every_norm():
    model = ModernGPT(ModernGPTConfig(50, 16, 1, 2, 8, norm_eps=1e-2, qk_norm=True))
    assert {module.eps for module in model.modules() if hasattr(module, "eps")} == {1e-2}


@pytest.mark.parametrize("options", [dict(), dict(n_kv_head=2), dict(qk_norm=True), dict(positions="none"),
                                     dict(window=4, sinks=2), dict(n_kv_head=1, window=3, qk_norm=True)], ids=str)
def test_attention_maps_are_the_softmax_of_the_scores_and_give_the_output(options):
    model = make_model(**options)
    maps = attention_maps(model, TOKENS)
    assert len(maps) == 3 and all(layer.shape == (2, 4, 16, 16) for layer in maps)
    i, j = torch.arange(16)[:, None], torch.arange(16)[None]
    seen = (j <= i) & ((i - j < options.get("window", 16)) | (j < options.get("sinks", 0)))
    with torch.no_grad():
        x = model.token_embedding(TOKENS)
        for block, weights in zip(model.blocks, maps):
            query, key, value = block.attention.queries_keys_values(block.norm_1(x))
            if model.config.positions == "rope":
                # Pairs (d, d + 3) turned by the position times 10000^(-2d/6), as complex numbers.
                turn = torch.polar(torch.ones(16, 3), torch.arange(16.0)[:, None] * 10000 ** (-torch.arange(3.0) / 3))
                query, key = (torch.complex(part[..., :3], part[..., 3:]) * turn for part in (query, key))
                query, key = (torch.cat((part.real, part.imag), dim=-1) for part in (query, key))
            head = torch.arange(4) // (4 // key.shape[1])  # the key-value head that each query head looks at
            scores = torch.einsum("bhid,bhjd->bhij", query, key[:, head]) / math.sqrt(6)
            expected = scores.masked_fill(~seen, -math.inf).softmax(-1)
            assert torch.allclose(weights, expected, atol=1e-5)
            heads = torch.einsum("bhij,bhjd->bihd", weights, value[:, head]).flatten(2)
            x = x + heads @ block.attention.project.weight.T
            x = x + block.feed_forward(block.norm_2(x))
        assert torch.allclose(model.head(model.norm(x)), model(TOKENS), atol=1e-4)


def test_looking_at_attention_changes_nothing_and_draws_nothing():
    model = make_model(dropout=0.5).train()
    state = torch.get_rng_state()
    maps = attention_maps(model, TOKENS)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert all(torch.equal(first, again) for first, again in zip(maps, attention_maps(model.eval(), TOKENS)))
    assert not model.training and not any(block.attention._forward_pre_hooks for block in model.blocks)
    model(TOKENS).sum().backward()
    assert model.head.weight.grad is not None


PACKED = dict(positions=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, -1, -1, -1, -1], [0, 0, 1, 2, *range(12)]]),
              segments=torch.tensor([[0] * 5 + [1] * 4 + [2] * 3 + [-1] * 4, [7] + [3] * 3 + [4] * 12]))


@pytest.mark.parametrize("options", [dict(), dict(positions="learned"), dict(positions="none"), dict(n_kv_head=1),
                                     dict(window=3), dict(window=3, sinks=1), SWITCHED_BACK])
def test_texts_that_share_a_row_give_the_logits_that_they_give_alone(options):
    model, segments = make_model(**options), PACKED["segments"]
    logits = model(TOKENS, **PACKED)
    for row in range(2):
        for segment in set(segments[row].tolist()) - {-1}:
            own = segments[row] == segment
            assert torch.allclose(logits[row, own], model(TOKENS[row, own][None])[0], atol=1e-5)
    assert logits.isfinite().all()  # of padding too: no row of the mask is empty
    assert torch.equal(model.hidden_states(TOKENS, **PACKED) @ model.head.weight.T, logits)


def test_a_row_of_one_text_needs_no_segments():
    model, positions = make_model(), torch.arange(16).expand(2, -1)
    one = torch.tensor([[0], [5]]).expand(-1, 16)
    assert torch.allclose(model(TOKENS, positions, segments=one), model(TOKENS), atol=1e-5)


def test_segments_without_positions_or_with_a_cache_are_refused():
    model, positions = make_model(), torch.arange(16).expand(2, -1)
    segments = torch.zeros_like(positions)
    with pytest.raises(ValueError, match="segments need positions, and no cache"):
        model(TOKENS, segments=segments)
    with pytest.raises(ValueError, match="segments need positions, and no cache"):
        model(TOKENS, positions, model.new_cache("static", 2, 16), segments)


# ---- without the causal mask (lesson 7.2) ----

ENCODERS = [dict(), dict(n_kv_head=1), dict(n_kv_head=2, qk_norm=True), dict(positions="learned"), dict(positions="none"),
            dict(window=3), dict(window=4, sinks=2), dict(window=12, sinks=4), dict(window=16), SWITCHED_BACK]


def naive_hidden_states(model, tokens, positions, visible):
    """The states of one text in fp64, its attention by exponentials and sums alone. tokens, positions: (T,); visible: (T, T)
    bool."""
    config, T = model.config, len(tokens)
    weights = model.double().state_dict()
    H, H_kv, D = config.n_head, config.n_kv_head, config.d_model // config.n_head
    x = model.embed(tokens[None], positions[None])[0]
    for layer, block in enumerate(model.blocks):
        heads = block.attention.qkv(block.norm_1(x)).view(T, H + 2 * H_kv, D)
        query, key, value = heads[:, :H], heads[:, H:H + H_kv], heads[:, H + H_kv:]
        if config.qk_norm:
            query, key = (part * (part.square().mean(-1, keepdim=True) + config.norm_eps) ** -0.5 * weights[
                f"blocks.{layer}.attention.{name}_norm.weight"] for part, name in ((query, "query"), (key, "key")))
        if config.positions == "rope":
            turn = torch.polar(torch.ones(T, D // 2).double(),
                               positions[:, None] * 10000 ** (-torch.arange(D // 2) * 2 / D).double())[:, None]
            query, key = (torch.view_as_real(torch.complex(part[..., :D // 2], part[..., D // 2:]) * turn).flatten(-2)
                          for part in (query, key))  # in another order, which no score sees
        outputs = []
        for h in range(H):
            k = h // (H // H_kv)
            scores = (query[:, h] @ key[:, k].T / math.sqrt(D)).exp() * visible
            outputs.append(scores / scores.sum(1, keepdim=True) @ value[:, k])
        x = x + block.attention.project(torch.cat(outputs, dim=1))
        x = x + block.feed_forward(block.norm_2(x))
    x = model.norm(x)
    model.float()
    return x


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("options", ENCODERS, ids=str)
@torch.no_grad()
def test_hidden_states_are_those_of_a_naive_attention_in_fp64(options, causal):
    model, at = make_model(**options), torch.arange(16)
    window, sinks = options.get("window", 99), options.get("sinks", 0)
    visible = ((at[:, None] - at[None]).abs() < window) | (at[None] < sinks)
    visible &= (at[None] <= at[:, None]) | (not causal)
    for positions in (None, at.expand(2, -1)):
        hidden = model.hidden_states(TOKENS, positions, causal=causal)
        for row, tokens in zip(hidden, TOKENS):
            assert (row - naive_hidden_states(model, tokens, at, visible)).abs().max() <= 1e-4


@pytest.mark.parametrize("options", [dict(), dict(window=4), dict(window=3, sinks=1), dict(positions="learned")], ids=str)
@torch.no_grad()
def test_a_later_token_changes_earlier_states_only_without_the_causal_mask(options):
    model, changed = make_model(**options), TOKENS.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 40
    for positions in (None, torch.arange(16).expand(2, -1)):
        states = [[model.hidden_states(tokens, positions, causal=causal) for tokens in (TOKENS, changed)]
                  for causal in (True, False)]
        moved = [(before - after).abs().amax(-1) for before, after in states]
        assert not moved[0][:, :10].any() and moved[0][:, 10:].amin(0)[0] > 1e-3
        reach = 3 * (options.get("window", 16) - 1)  # three layers
        seen = range(max(0, 10 - reach), 10)
        assert moved[1][:, seen].min() > 1e-6 and not moved[1][:, :seen.start].any()


@pytest.mark.parametrize("options", [dict(), dict(window=4, sinks=1), dict(positions="learned"), dict(n_kv_head=1)], ids=str)
@torch.no_grad()
def test_without_the_causal_mask_padding_on_either_side_and_neighbours_change_nothing(options):
    model, generator = make_model(**options), torch.Generator().manual_seed(3)
    for places, length in ((range(2, 9), 7), (range(0, 7), 7), (range(9, 16), 7), (range(5, 6), 1)):
        tokens = torch.randint(40, (2, 16), generator=generator)
        tokens[1, places] = TOKENS[1, :length]
        positions = torch.full((2, 16), -1)
        positions[0], positions[1, places] = torch.arange(16), torch.arange(length)
        padded = model.hidden_states(tokens, positions, causal=False)
        alone = model.hidden_states(TOKENS[1:, :length], causal=False)
        assert (padded[1, places] - alone[0]).abs().max() <= 1e-5 and padded.isfinite().all()
    packed = model.hidden_states(TOKENS, **PACKED, causal=False)
    alone = model.hidden_states(TOKENS[:1, 5:9], causal=False)
    assert (packed[0, 5:9] - alone[0]).abs().max() <= 1e-5


def test_causal_is_what_hidden_states_and_logits_are_by_default():
    model = make_model()
    assert torch.equal(model.hidden_states(TOKENS), model.hidden_states(TOKENS, causal=True))
    assert torch.equal(model(TOKENS), model.head(model.hidden_states(TOKENS, causal=True)))


@pytest.mark.parametrize("kind", ["static", "rolling", "streaming"])
def test_a_cache_without_the_causal_mask_is_refused(kind):
    model = make_model(window=4)
    cache = model.new_cache(kind, 2, 16)
    with pytest.raises(ValueError, match="a cache needs causal attention"):
        model.hidden_states(TOKENS[:, :3], None, cache, causal=False)
    assert cache.length == 0


@pytest.mark.parametrize("options", [dict(), dict(n_kv_head=2), dict(window=4, sinks=1)], ids=str)
@pytest.mark.parametrize("positions", [None, torch.arange(16).expand(2, -1)], ids=["none", "given"])
def test_without_the_causal_mask_training_in_bf16_gives_the_same_states(options, positions):
    # The attention of training in bf16 on a CPU is another one (lesson 3.4); without a mask it would be causal.
    model = make_model(**options).train()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden_states(TOKENS, positions, causal=False)
    expected = model.hidden_states(TOKENS, positions, causal=False)
    assert (hidden - expected).abs().max() < 0.15 < (model.hidden_states(TOKENS) - expected).abs().max()
