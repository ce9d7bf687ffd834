"""Exercises of Part 3. Replace each `raise`; `python3 -m pytest tests/exercises -k part_3` says whether you are right."""


def rotate_pair(a, b, position, frequency):
    """RoPE for one pair of columns.

    a, b: the two numbers of the pair; position: t; frequency: the pair's angle per position, w, in radians. Returns the two
    numbers after the rotation. Hint: lesson 3.2; a + ib is multiplied by e^(itw).
    """
    raise NotImplementedError("solve me")


def visible_keys(query, window, sinks):
    """Which keys may a query see under a sliding window with attention sinks?

    query: its position; window: how many tokens a query sees, itself included; sinks: how many first tokens every query
    sees that stands at or behind them. Returns the positions of the keys in rising order, a list of int. Hint: lesson 3.5;
    none twice, none after the query.
    """
    raise NotImplementedError("solve me")


def cache_bytes(n_layer, n_head, n_kv_head, d_model, n_tokens, n_rows, bytes_each):
    """How much memory does a key-value cache take?

    n_head: H query heads; n_kv_head: H_kv heads of keys and values; d_model: C, the width of all query heads together;
    n_tokens: of each of n_rows texts; bytes_each: bytes of a number, 2 for bf16. Returns bytes. Hint: lesson 3.4.
    """
    raise NotImplementedError("solve me")
