import pytest
import torch

from part_3 import modern_gpt
from part_3.generate import generate, pad_left
from tests.part_3.cache_reference import (
    PROMPTS,
    TOLERANCE,
    Reader,
    contents,
    error,
    make_model,
    read_in_passes,
)


@pytest.mark.parametrize("n_rows", [1, 4], ids=["one", "ragged"])
@pytest.mark.parametrize("window, sinks", [(1, 0), (1, 2), (6, 0), (4, 7)])
def test_a_rolling_cache_allows_passes_of_any_lengths_in_any_order(window, sinks, n_rows):
    model, prompts = make_model(window=window, sinks=sinks, n_kv_head=2), PROMPTS[:n_rows]
    tokens, positions = pad_left(prompts)
    expected = [Reader(model).read_all(prompt) for prompt in prompts]
    for sizes in ([3, 1, 1, 9, 2], [1, 20], [20, 1], [4, 1, 12, 1], [window + sinks, 1], [1, window + sinks + 1]):
        for kind in ("static", "rolling"):
            logits = read_in_passes(model, tokens, positions, kind, sizes)
            for row, prompt in enumerate(prompts):
                assert error(logits[row, 21 - len(prompt):], expected[row]) < TOLERANCE


@pytest.mark.parametrize("kind", ["rolling", "streaming"])
@pytest.mark.parametrize("n_rows", [1, 4], ids=["one", "ragged"])
def test_a_ring_s_memory_stays_the_same_while_it_turns_many_times(kind, n_rows):
    model = make_model(window=6, sinks=2)
    tokens, positions = pad_left(PROMPTS[:n_rows])
    cache = model.new_cache(kind, n_rows)
    before = cache.n_bytes, [buffer.data_ptr() for buffer in contents(cache)]
    model(tokens, positions, cache)
    sinks = [buffer[0, :, 1:3].clone() for buffer in contents(cache)]  # of the row that is not padded
    more = torch.randint(40, (n_rows, 60))
    for t in range(60):  # ten windows
        model(more[:, t:t + 1], None, cache)
    assert (cache.n_bytes, [buffer.data_ptr() for buffer in contents(cache)]) == before
    assert all(torch.equal(buffer[0, :, 1:3], first) for buffer, first in zip(contents(cache), sinks))


@pytest.mark.parametrize("kind", ["rolling", "streaming"])
def test_a_ring_holds_the_sinks_and_the_last_window(kind):
    model = make_model(window=6, sinks=2)
    cache = model.new_cache(kind, 1)
    for t in range(40):
        model(torch.tensor([[t]]), None, cache)
        expected = {k for k in range(t + 1) if k < 2 or t - k < 6}
        held = cache.positions[0].tolist()
        assert held[0] == -1 and {k for k in held if k >= 0} == expected and held[1] == 0
        assert held[2:3] == [1 if t else -1]


@pytest.mark.parametrize("n_rows", [1, 4], ids=["one", "ragged"])
def test_no_two_tokens_of_a_pass_are_written_to_one_place(n_rows):  # which of them stays would be left to chance
    tokens, positions = pad_left(PROMPTS[:n_rows])
    cache = make_model(window=6, sinks=2).new_cache("rolling", n_rows)
    cache.begin(21, positions)
    for row in cache.write.tolist():
        places = [place for place in row if place]
        assert len(places) == len(set(places)) <= 8
    assert (cache.positions[:, 0] == -1).all()  # padding's place stays nobody's


def test_a_text_of_ten_windows_is_the_windowed_pass():
    model = make_model(window=6, sinks=2, n_kv_head=2)
    text = torch.randint(40, (60,), generator=torch.Generator().manual_seed(0))
    logits = read_in_passes(model, text[None], None, "rolling", [1])[0]
    assert error(logits, Reader(model).read_all(text)) < TOLERANCE


@pytest.mark.parametrize("sizes", [[8], [3], [1]])
@pytest.mark.parametrize("lengths", [[8], [8, 5, 1]])
def test_a_streaming_cache_is_a_static_one_while_nothing_has_been_dropped(lengths, sizes):
    model = make_model(window=6, sinks=2)
    tokens, positions = pad_left([PROMPTS[0][:n] for n in lengths])
    streaming, static = (read_in_passes(model, tokens, positions, kind, sizes) for kind in ("streaming", "static"))
    real = slice(None) if positions is None else positions >= 0
    assert (streaming - static)[real].abs().max() < TOLERANCE


@pytest.mark.parametrize("sizes", [[1], [21], [5], [8, 1]])
@pytest.mark.parametrize("n_rows", [1, 4], ids=["one", "ragged"])
@pytest.mark.parametrize("n_layer, window, sinks", [(1, 6, 2), (3, 6, 2), (2, 5, 0), (2, 1, 3)])
def test_to_a_streaming_query_a_sink_is_never_further_away_than_the_window(n_layer, window, sinks, n_rows, sizes):
    model = make_model(n_layer, window=window, sinks=sinks, n_kv_head=2)
    tokens, positions = pad_left(PROMPTS[:n_rows])
    logits = read_in_passes(model, tokens, positions, "streaming", sizes)
    for row in range(n_rows):
        assert error(logits[row, 21 - len(PROMPTS[row]):], Reader(model, True).read_all(PROMPTS[row])) < TOLERANCE


def test_behind_the_window_a_streaming_cache_differs_from_a_rolling_one_by_its_sinks_alone():
    for sinks, differs in ((2, True), (0, False)):
        model = make_model(window=6, sinks=sinks)
        a, b = (read_in_passes(model, PROMPTS[0][None], None, kind, [1]) for kind in ("streaming", "rolling"))
        n = 6 + sinks
        assert (a - b)[:, :n].abs().max() < TOLERANCE
        assert ((a - b)[:, n:].abs().amax(-1) > 100 * TOLERANCE).all() == differs


@pytest.mark.parametrize("n_rows", [1, 4], ids=["one", "ragged"])
def test_no_streaming_angle_ever_exceeds_the_capacity(monkeypatch, n_rows):
    model, asked = make_model(window=6, sinks=2), []
    original = modern_gpt.rotation

    def spy(positions, *arguments):
        asked.append(positions)
        return original(positions, *arguments)

    monkeypatch.setattr(modern_gpt, "rotation", spy)
    generate(model, PROMPTS[:n_rows], 80, temperature=0.0, cache="streaming")
    asked = torch.cat([positions.flatten() for positions in asked])
    assert asked.min() >= -1 and asked.max() == 7


def test_a_streaming_cache_itself_refuses_a_pass_over_its_end():
    cache = make_model(window=6, sinks=2).new_cache("streaming", 1)
    assert cache.takes(8) and not cache.takes(9)
    with pytest.raises(ValueError, match="8 tokens.*not 9"):
        cache.begin(9)
    cache.begin(8)
    assert cache.takes(1) and not cache.takes(2)
    cache.begin(1)


@pytest.mark.parametrize("kind", ["rolling", "streaming"])
def test_a_ring_is_refused_without_a_window(kind):
    with pytest.raises(ValueError, match="window"):
        make_model().new_cache(kind, 1, 8)


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "none"])
def test_a_streaming_cache_is_refused_without_rotary_positions(positions):
    with pytest.raises(ValueError, match="rotary"):
        make_model(positions=positions, window=6).new_cache("streaming", 1)
