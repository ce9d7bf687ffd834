import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_3.attention_mask import attention_mask

RULES = pytest.mark.parametrize("window, sinks", list(itertools.product([None, 1, 2, 3, 9], [0, 1, 2])))


def may_look(q, k, window, sinks):
    """The rule in words: padding and text do not mix; nobody looks ahead; behind the window only the sinks are seen."""
    if q == -1:
        return k == -1
    if k < 0 or k > q:
        return False
    return window is None or k in range(q - window + 1, q + 1) or k in range(sinks)


def by_hand(queries, keys, window, sinks):
    return [[may_look(q, k, window, sinks) for k in keys] for q in queries]


@RULES
def test_every_pair_of_positions_follows_the_rule(window, sinks):
    positions = list(range(-1, 9))
    mask = attention_mask(torch.tensor(positions), torch.tensor(positions), window, sinks)
    assert mask.dtype == torch.bool and mask.tolist() == by_hand(positions, positions, window, sinks)


def test_without_a_window_it_is_the_causal_triangle():
    assert torch.equal(attention_mask(torch.arange(7), torch.arange(7)), torch.ones(7, 7).tril().bool())


def test_a_window_of_1_is_the_token_itself_and_a_wide_one_everything_before():
    assert torch.equal(attention_mask(torch.arange(6), torch.arange(6), window=1), torch.eye(6).bool())
    assert torch.equal(attention_mask(torch.arange(6), torch.arange(6), window=6), torch.ones(6, 6).tril().bool())


def test_a_window_of_3_with_2_sinks_drawn():
    drawn = ["x......",
             "xx.....",
             "xxx....",
             "xxxx...",
             "xxxxx..",
             "xx.xxx.",
             "xx..xxx"]
    mask = attention_mask(torch.arange(7), torch.arange(7), window=3, sinks=2)
    assert ["".join(".x"[seen] for seen in row) for row in mask.tolist()] == drawn


@RULES
def test_text_never_sees_padding_and_no_row_is_empty(window, sinks):
    # Rows of padding, an empty cache (all places -1 but the query's own), and a padding place behind the text.
    queries = torch.tensor([[-1, -1, 0, 1], [0, 1, 2, 3], [-1, -1, -1, 0]])
    keys = torch.tensor([[-1, -1, 0, 1, -1], [-1, 0, 1, 2, 3], [-1, -1, -1, 0, -1]])
    mask = attention_mask(queries, keys, window, sinks)
    assert mask.any(dim=-1).all()
    is_text, is_empty = queries[:, :, None] >= 0, keys[:, None, :] < 0
    assert not (mask & is_text & is_empty).any() and not (mask & ~is_text & ~is_empty).any()
    assert not attention_mask(torch.arange(4), torch.tensor([-1, -2, -7]), window, sinks).any()


@RULES
def test_rows_may_differ_on_either_side_or_on_both(window, sinks):
    queries, keys = [[-1, 0, 1, 2], [5, 6, 7, 8]], [[-1, 0, 1, 2, 4], [3, 8, 7, 6, 5]]
    both = attention_mask(torch.tensor(queries), torch.tensor(keys), window, sinks)
    assert both.tolist() == [by_hand(q, k, window, sinks) for q, k in zip(queries, keys)]
    left = attention_mask(torch.tensor(queries), torch.tensor(keys[0]), window, sinks)
    assert left.tolist() == [by_hand(q, keys[0], window, sinks) for q in queries]
    right = attention_mask(torch.tensor(queries[1]), torch.tensor(keys), window, sinks)
    assert right.tolist() == [by_hand(queries[1], k, window, sinks) for k in keys]


@RULES
def test_the_order_of_the_keys_does_not_matter(window, sinks):
    torch.manual_seed(0)
    queries, keys, order = torch.tensor([7, 8, 9]), torch.arange(-1, 10), torch.randperm(11)
    assert torch.equal(attention_mask(queries, keys[order], window, sinks),
                       attention_mask(queries, keys, window, sinks)[:, order])


def test_two_texts_and_padding_in_a_row_drawn():
    # Text 0 has three tokens, text 1 four; then two places of padding, which see each other so that no row is empty.
    positions, segments = torch.tensor([[0, 1, 2, 0, 1, 2, 3, -1, -1]]), torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1, -1]])
    drawn = ["x........",
             "xx.......",
             ".xx......",  # a window of two
             "...x.....",
             "...xx....",
             "....xx...",
             ".....xx..",
             ".......xx",
             ".......xx"]
    [mask] = attention_mask(positions, positions, window=2, segments=segments)
    assert ["".join(".x"[seen] for seen in row) for row in mask.tolist()] == drawn
    [mask] = attention_mask(positions, positions, window=2, sinks=1, segments=segments)  # each text has its own sink
    assert ["".join(".x"[seen] for seen in row) for row in mask.tolist()][2:7] == [
        "xxx......", "...x.....", "...xx....", "...xxx...", "...x.xx.."]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
       st.sampled_from([None, 1, 2, 3, 9]), st.sampled_from([0, 1, 2]))
def test_segments_hide_all_other_texts_and_nothing_else(rows, window, sinks):
    width = max(map(sum, rows))
    positions = [[t for length in row for t in range(length)] + [-1] * (width - sum(row)) for row in rows]
    segments = [[i for i, length in enumerate(row) for _ in range(length)] + [-1] * (width - sum(row)) for row in rows]
    mask = attention_mask(torch.tensor(positions), torch.tensor(positions), window, sinks, torch.tensor(segments))
    expected = [[[a == b and may_look(q, k, window, sinks) for k, b in zip(row, texts)] for q, a in zip(row, texts)]
                for row, texts in zip(positions, segments)]
    assert mask.tolist() == expected and mask.any(dim=-1).all()


@RULES
def test_one_text_a_row_needs_no_segments(window, sinks):
    positions = torch.tensor([[0, 1, 2, 3], [-1, -1, 0, 1]])
    segments = torch.tensor([[5, 5, 5, 5], [-1, -1, 3, 3]])  # which number a text has makes no difference
    assert torch.equal(attention_mask(positions, positions, window, sinks, segments),
                       attention_mask(positions, positions, window, sinks))


# ---- without the causal mask (lesson 7.2) ----

def may_look_both_ways(q, k, window, sinks):
    """The rule in words: padding and text do not mix; what is as far as the window is not seen, on either side, but for the
    sinks."""
    if q == -1 or k < 0:
        return q == -1 and k == -1
    return window is None or k in range(q - window + 1, q + window) or k in range(sinks)


@RULES
def test_without_the_causal_mask_every_pair_follows_the_rule(window, sinks):
    positions = list(range(-1, 9))
    mask = attention_mask(torch.tensor(positions), torch.tensor(positions), window, sinks, causal=False)
    assert mask.dtype == torch.bool
    assert mask.tolist() == [[may_look_both_ways(q, k, window, sinks) for k in positions] for q in positions]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=3),
       st.sampled_from([None, 1, 2, 3, 9]), st.sampled_from([0, 1, 2]))
def test_without_the_causal_mask_segments_still_hide_all_other_texts(rows, window, sinks):
    width = max(map(sum, rows)) + 1
    positions = [[t for length in row for t in range(length)] + [-1] * (width - sum(row)) for row in rows]
    segments = [[i for i, length in enumerate(row) for _ in range(length)] + [-1] * (width - sum(row)) for row in rows]
    mask = attention_mask(*(torch.tensor(positions),) * 2, window, sinks, torch.tensor(segments), causal=False)
    expected = [[[a == b and may_look_both_ways(q, k, window, sinks) for k, b in zip(row, texts)]
                 for q, a in zip(row, texts)] for row, texts in zip(positions, segments)]
    assert mask.tolist() == expected and mask.any(dim=-1).all()


def test_a_window_of_2_with_a_sink_reaches_as_far_ahead_as_back_drawn():
    drawn = ["xx...",
             "xxx..",
             "xxxx.",
             "x.xxx",
             "x..xx"]
    mask = attention_mask(torch.arange(5), torch.arange(5), window=2, sinks=1, causal=False)
    assert ["".join(".x"[seen] for seen in row) for row in mask.tolist()] == drawn
    assert attention_mask(torch.arange(5), torch.arange(5), causal=False).all()
