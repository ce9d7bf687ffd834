"""Reference answers to the exercises of Part 3."""

import math


def rotate_pair(a, b, position, frequency):
    """Real and imaginary part of (a + ib)(cos + i sin)."""
    cos, sin = math.cos(position * frequency), math.sin(position * frequency)
    return a * cos - b * sin, a * sin + b * cos


def visible_keys(query, window, sinks):
    """The rule of the lesson, asked of every key up to the query."""
    return [key for key in range(query + 1) if query - key < window or key < sinks]


def cache_bytes(n_layer, n_head, n_kv_head, d_model, n_tokens, n_rows, bytes_each):
    """A key and a value, of width D = C/H, for each key-value head of each layer and token."""
    d_head = d_model // n_head
    return 2 * n_layer * n_kv_head * d_head * n_tokens * n_rows * bytes_each
