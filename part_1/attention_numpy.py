"""Lesson 1.2 - attention by hand: NumPy, three tokens, numbers small enough to check with a pencil.

    Q = X Wq,  K = X Wk,  V = X Wv          each token's query, key and value
    S = Q K^T / sqrt(D)                     scores: how well each query fits each key
    A = softmax(S)                          weights: every row sums to 1
    Y = A V                                 output: each token's weighted mean of the values

(Vaswani et al. 2017, equation 1.)
"""

from typing import NamedTuple

import numpy as np

TOKENS = ("the", "cat", "sat")
X = np.array([[1.0, 0.0, 1.0, 0.0],
              [0.0, 1.0, 0.0, 1.0],
              [1.0, 1.0, 0.0, 0.0]])  # (T=3, C=4): an embedding a token
W_QUERY = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 1.0]])  # (C=4, D=2)
W_KEY = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
W_VALUE = np.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 2.0]])


class Attention(NamedTuple):
    """Every number on the way: query, key, value (T, D); scores and weights (T, T); output (T, D)."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    scores: np.ndarray
    weights: np.ndarray
    output: np.ndarray


def softmax(scores):
    """exp(s) / sum exp(s) along the last axis. The row's maximum is taken off first: same result, no overflow."""
    exponentials = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def attention(x, w_query, w_key, w_value, causal=False):
    """Single-head attention of x with itself.

    x: (T, C); w_query, w_key: (C, D); w_value: (C, D_value). With `causal` a token sees itself and what is before it: the
    scores above the diagonal are -inf, so their weights are exactly 0. Returns an `Attention`.
    """
    query, key, value = x @ w_query, x @ w_key, x @ w_value
    scores = query @ key.T / np.sqrt(query.shape[-1])
    if causal:
        scores = np.where(np.tri(len(x), dtype=bool), scores, -np.inf)
    weights = softmax(scores)
    return Attention(query, key, value, scores, weights, weights @ value)
