"""The cache lab: whatever is cached, masked, grouped, padded and cut into passes, the logits are those of the reference."""

import functools

import pytest
import torch

from part_3.generate import generate, pad_left
from part_3.kv_cache import StaticCache
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_3.rolling_cache import RollingCache, StreamingCache
from tests.part_3.cache_reference import (
    N_NEW,
    PROMPTS,
    TOLERANCE,
    Reader,
    contents,
    error,
    make_model,
    pieces,
    read_in_passes,
)

LOOKS = {"full": dict(), "window": dict(window=6), "sinks": dict(window=6, sinks=2)}
HEADS = {"mha": dict(n_kv_head=4), "gqa": dict(n_kv_head=2)}
PASSES = {"at once": 21, "in chunks": 5, "token by token": 1}


@functools.cache
def truth(look, heads, row):
    model = make_model(**LOOKS[look], **HEADS[heads])
    return Reader(model).read_all(PROMPTS[row]), Reader(model).continue_greedily(PROMPTS[row], N_NEW)


@pytest.mark.parametrize("passes", PASSES)
@pytest.mark.parametrize("n_rows", [1, 4], ids=["one", "ragged"])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", ["none", "static", "rolling"])
def test_every_cache_gives_the_logits_of_each_prompt_read_alone(kind, look, heads, n_rows, passes):
    options = {**LOOKS[look], **HEADS[heads]}
    if kind == "rolling" and look == "full":
        options["window"] = 21 + N_NEW  # a ring never shorter than the text
    model, prompts, size = make_model(**options), PROMPTS[:n_rows], PASSES[passes]
    tokens, positions = pad_left(prompts)
    logits = read_in_passes(model, tokens, positions, kind, [size])
    for row, prompt in enumerate(prompts):
        assert error(logits[row, 21 - len(prompt):], truth(look, heads, row)[0]) < TOLERANCE
    new = generate(model, prompts, N_NEW, temperature=0.0, cache=kind, chunk=size)
    assert [row.tolist() for row in new] == [truth(look, heads, row)[1] for row in range(n_rows)]

    tokens[:, 17] = (tokens[:, 17] + 1) % 40
    changed = read_in_passes(model, tokens, positions, kind, [size])
    for row, prompt in enumerate(prompts):
        assert ((changed - logits)[row, 21 - len(prompt):17].abs() <= 1e-6).all()
    assert (changed[0, 17] - logits[0, 17]).abs().max() > 0.1


@pytest.mark.parametrize("change", [dict(window=7, sinks=2), dict(window=5, sinks=2), dict(window=6, sinks=1),
                                    dict(window=6, sinks=3), dict(), dict(rope_scale=1.1), dict(n_kv_head=4)])
def test_the_lab_would_notice_one_token_too_many_or_too_few(change):
    right = make_model(window=6, sinks=2, n_kv_head=2)
    other = make_model(**{"n_kv_head": 2, **change})
    if "n_kv_head" not in change:
        other.load_state_dict(right.state_dict())
    assert error(other(PROMPTS[0][None])[0], truth("sinks", "gqa", 0)[0]) > 100 * TOLERANCE


@pytest.mark.parametrize("options", [dict(qk_norm=True), dict(rope_pairing="interleaved"), dict(rope_base=50.0),
                                     dict(rope_scale=3.0), dict(norm_eps=0.1), dict(d_hidden=10), dict(n_kv_head=1)])
def test_the_second_implementation_agrees_on_every_option_of_the_model(options):
    model = make_model(n_layer=3, window=9, sinks=1, **options)
    assert error(model(PROMPTS[0][None])[0], Reader(model).read_all(PROMPTS[0])) < TOLERANCE


@pytest.mark.parametrize("kind", ["static", "rolling", "streaming"])
def test_the_memory_is_what_the_shapes_say(kind):
    cache = make_model(window=6, sinks=2, n_kv_head=2).new_cache(kind, 3, 20)
    # keys and values x 2 layers x 3 rows x 2 heads x (8 or 20 places and padding's) x 6 columns x 4 bytes
    assert cache.n_bytes == 2 * 2 * 3 * 2 * ((20 if kind == "static" else 8) + 1) * 6 * 4


def test_a_static_cache_that_is_full_says_how_many_tokens_do_not_fit():
    model = make_model()
    cache = model.new_cache("static", 1, 8)
    before = [buffer.data_ptr() for buffer in contents(cache)]
    model(PROMPTS[0][None, :5], None, cache)
    for t in range(5, 8):  # the last token that fits is taken
        model(PROMPTS[0][None, t:t + 1], None, cache)
    assert [buffer.data_ptr() for buffer in contents(cache)] == before
    with pytest.raises(ValueError, match="9 tokens.*cache of 8"):
        model(PROMPTS[0][None, 8:9], None, cache)
    with pytest.raises(ValueError, match="21 tokens.*cache of 20"):
        model(PROMPTS[0][None], None, model.new_cache("static", 1, 20))


@pytest.mark.parametrize("batch_size, capacity", [(0, 5), (5, 0)])
def test_an_empty_cache_is_refused(batch_size, capacity):
    with pytest.raises(ValueError, match=f"{batch_size} and {capacity}"):
        make_model().new_cache("static", batch_size, capacity)


@pytest.mark.parametrize("kind", ["static", "rolling", "streaming"])
@pytest.mark.parametrize("n_rows, garbage", [(1, float("nan")), (4, 1e6)], ids=["one", "ragged"])
def test_nothing_but_the_row_s_own_tokens_is_ever_seen(kind, n_rows, garbage):
    model = make_model(window=6, sinks=2)
    tokens, positions = pad_left(PROMPTS[:n_rows])
    logits = []
    for fill in (0.0, garbage):  # in every place, before anything is written; in padding's, also later
        cache = model.new_cache(kind, n_rows, 21)
        for buffer in contents(cache):
            buffer.fill_(fill)
        parts = []
        for start, end in pieces(21, [2, 1, 3]):
            where = None if positions is None else positions[:, start:end]
            parts.append(model(tokens[:, start:end], where, cache))
            for buffer in contents(cache):
                buffer[:, :, 0] = fill if kind == "static" or n_rows > 1 else 0.0
        logits.append(torch.cat(parts, dim=1))
    for row in range(n_rows):
        real = slice(21 - len(PROMPTS[row]), None)
        assert (logits[1][row, real] - logits[0][row, real]).abs().max() <= 1e-5  # False for NaN


def test_padding_tokens_can_be_any():
    model = make_model(window=6, sinks=2)
    tokens, positions = pad_left(PROMPTS)
    other = torch.where(positions < 0, 39, tokens)
    for kind in ("none", "static", "rolling", "streaming"):
        logits, changed = (read_in_passes(model, text, positions, kind, [4]) for text in (tokens, other))
        assert (logits - changed)[positions >= 0].abs().max() <= 1e-6


@pytest.mark.parametrize("options", [dict(), dict(window=6, sinks=2)], ids=["full", "sinks"])
def test_rows_of_one_length_may_turn_ragged_later(options):
    model = make_model(**options)
    # All rows read three tokens; then the first reads five more, the second two and the third none; then each reads one
    # more, twice, but the second row only the first time; and at last each reads one.
    texts = [[*PROMPTS[0][:8], 7, 1, 5], [*PROMPTS[1][:5], 2, 6], [*PROMPTS[0][5:8], 4, 3, 8]]
    passes = [torch.arange(3).expand(3, -1), torch.tensor([[3, 4, 5, 6, 7], [-1, -1, -1, 3, 4], [-1] * 5]),
              torch.tensor([[8], [5], [3]]), torch.tensor([[9], [-1], [4]]), torch.tensor([[10], [6], [5]])]
    expected = [Reader(model).read_all(text) for text in texts]
    for kind in ("static", "rolling") if options else ("static",):
        cache = model.new_cache(kind, 3, 12)
        for n, positions in enumerate(passes):
            tokens = torch.tensor([[texts[row][p] if p >= 0 else 0 for p in positions[row]] for row in range(3)])
            logits = model(tokens, positions if n in (1, 3) else None, cache)  # None: each row goes on where it stands
            for row in range(3):
                for t, p in enumerate(positions[row]):
                    assert p < 0 or error(logits[row, t], expected[row][p]) < TOLERANCE


@pytest.mark.parametrize("kind", ["static", "rolling", "streaming"])
@pytest.mark.parametrize("n_prompts, rows", [(4, [2, 0, 3, 1]), (4, [3, 3, 0]), (1, [0] * 5), (2, [1])])
def test_selected_rows_go_on_as_separate_runs(kind, n_prompts, rows):
    model = make_model(window=6, sinks=2, n_kv_head=2)
    prompts = PROMPTS[:n_prompts]
    for size in (21, 5):  # prefill at once, in chunks
        tokens, positions = pad_left(prompts)
        cache = model.new_cache(kind, n_prompts, 30)
        read_in_passes(model, tokens, positions, kind, [size], cache)
        cache.select(torch.tensor(rows))
        more = torch.randint(40, (len(rows), 9), generator=torch.Generator().manual_seed(1))
        logits = read_in_passes(model, more, None, kind, [1, 3, 1], cache)
        for i, row in enumerate(rows):
            expected = Reader(model, kind == "streaming").read_all([*prompts[row], *more[i]])[-9:]
            assert error(logits[i], expected) < TOLERANCE


@pytest.mark.parametrize("kind", ["static", "rolling", "streaming"])
def test_selected_rows_of_one_length_keep_their_own_texts(kind):
    model = make_model(window=6, sinks=2)
    texts = torch.randint(40, (3, 10), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(kind, 3, 20)
    model(texts, None, cache)
    cache.select(torch.tensor([2, 0]))
    logits = read_in_passes(model, texts[:2, :7], None, kind, [1], cache)
    for i, row in enumerate((2, 0)):
        assert error(logits[i], Reader(model, kind == "streaming").read_all([*texts[row], *texts[i, :7]])[-7:]) < TOLERANCE


@pytest.mark.parametrize("kind, cache_class", [("static", StaticCache), ("rolling", RollingCache),
                                               ("streaming", StreamingCache)])
def test_a_cache_has_the_dtype_that_attention_works_in(kind, cache_class):
    model = make_model(window=6, sinks=2)
    assert type(model.new_cache(kind, 1, 8)) is cache_class
    assert {buffer.dtype for buffer in contents(model.new_cache(kind, 1, 8))} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        cache = model.new_cache(kind, 4, 21)
        tokens, positions = pad_left(PROMPTS)
        logits = read_in_passes(model, tokens, positions, kind, [4, 1], cache)
    assert {buffer.dtype for buffer in contents(cache)} == {torch.bfloat16}
    real = positions >= 0
    plain = read_in_passes(model, tokens, positions, kind, [4, 1])
    assert (logits - plain)[real].square().mean().sqrt() < 0.1 * plain[real].std()  # bf16 keeps two to three digits


@pytest.mark.parametrize("n_rows", [1, 4], ids=["one", "ragged"])
def test_a_cache_made_outside_autocast_may_be_used_inside(n_rows):
    model, (tokens, positions) = make_model(window=6, sinks=2), pad_left(PROMPTS[:n_rows])
    outside = model.new_cache("static", n_rows, 21)
    with torch.autocast("cpu", torch.bfloat16):
        logits, expected = (read_in_passes(model, tokens, positions, "static", [4, 1], cache) for cache in (outside, None))
    # fp32 holds every bf16 number, so the same keys and values are read from both.
    assert torch.allclose(logits[0].float(), expected[0].float(), atol=0.05)


def test_a_bf16_model_has_a_bf16_cache():
    model = ModernGPT(ModernGPTConfig(40, 8, 1, 2, 8)).bfloat16()
    assert model.new_cache("static", 1, 8).keys[0].dtype == torch.bfloat16


def test_an_unknown_cache_is_refused_by_name():
    with pytest.raises(ValueError, match="static, rolling, streaming, not quick"):
        make_model().new_cache("quick", 1, 8)
