"""Lesson 1.3 - one attention head in PyTorch, and why its scores are divided by sqrt(D).

    Attention(Q, K, V) = softmax(Q K^T / sqrt(D) + mask) V            (Vaswani et al. 2017, equation 1)

The score of two vectors with D independent entries of variance 1 has variance D. Undivided, it grows with the width
until in most rows the softmax puts all weight on one key and passes on hardly any gradient; divided by sqrt(D) it keeps
variance 1.

A mask says where attention may look: True = may, as in torch's `scaled_dot_product_attention`.
"""

import math

import torch
from torch import nn


def causal_mask(n_tokens, device=None):
    """(T, T) bool, True where query row i may look at key column j: j <= i."""
    return torch.ones(n_tokens, n_tokens, dtype=torch.bool, device=device).tril()


def scaled_dot_product_attention(query, key, value, mask=None, scale=None):
    """Attention with an explicit softmax: the math path.

    query: (..., T_query, D); key: (..., T_key, D); value: (..., T_key, D_value).
    mask: bool, broadcastable to (..., T_query, T_key), True = may look; every row needs at least one True.
    scale: what the scores are multiplied by; 1/sqrt(D) when None.
    Returns the output (..., T_query, D_value) and the weights (..., T_query, T_key), whose rows sum to 1.
    """
    if scale is None:
        scale = 1 / math.sqrt(query.shape[-1])
    scores = query @ key.transpose(-2, -1) * scale  # (..., T_query, T_key)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    # Softmax in fp32: in bf16 the sum over many keys would lose its small terms.
    weights = scores.float().softmax(dim=-1).to(value.dtype)
    return weights @ value, weights


class SingleHeadAttention(nn.Module):
    """One head: project to query, key and value, attend. The value may be wider or narrower than the key."""

    def __init__(self, d_model, d_head, d_value=None):
        """d_model: width C of the input; d_head: width D of query and key; d_value: width of the value (default D)."""
        super().__init__()
        self.query = nn.Linear(d_model, d_head, bias=False)
        self.key = nn.Linear(d_model, d_head, bias=False)
        self.value = nn.Linear(d_model, d_head if d_value is None else d_value, bias=False)

    def forward(self, x, mask=None):
        """x: (B, T, C); mask: bool (T, T), True = may look. Returns output (B, T, D_value) and weights (B, T, T)."""
        return scaled_dot_product_attention(self.query(x), self.key(x), self.value(x), mask)
