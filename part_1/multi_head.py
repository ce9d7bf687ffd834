"""Lesson 1.4 - multi-head attention: H small heads side by side cost what one wide head costs, and look at H things.

    head_h = Attention(X Wq_h, X Wk_h, X Wv_h)          MultiHead(X) = [head_1, ..., head_H] Wo

(Vaswani et al. 2017, section 3.2.2.) The H projections are one matrix; a head is a slice of its output.

Two ways to the same numbers: the math path (lesson 1.3, explicit softmax) shows the weights and holds all T x T of them;
the fused path (torch's `scaled_dot_product_attention`: Dao et al. 2022, "FlashAttention") never does, and trains faster.
"""

import torch.nn.functional as F
from torch import nn

from part_0.device import fused_attention
from part_1.single_head import causal_mask, scaled_dot_product_attention


def split_heads(x, n_head):
    """(B, T, C) -> (B, H, T, D) with D = C/H: head h takes columns h*D ... (h+1)*D - 1."""
    B, T, C = x.shape
    return x.view(B, T, n_head, C // n_head).transpose(1, 2)


def merge_heads(x):
    """(B, H, T, D) -> (B, T, C): the inverse of `split_heads`, i.e. the heads concatenated."""
    B, H, T, D = x.shape
    return x.transpose(1, 2).reshape(B, T, H * D)


class MultiHeadAttention(nn.Module):
    """Self-attention with H heads of width D = C/H."""

    def __init__(self, d_model, n_head, bias=True, dropout=0.0, fused=True):
        """d_model: width C, divisible by n_head; dropout: probability for the attention weights; fused: which path."""
        super().__init__()
        if d_model % n_head:
            raise ValueError(f"d_model {d_model} must be divisible by n_head {n_head}")
        self.n_head = n_head
        self.dropout = dropout
        self.fused = fused
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)  # the three projections as one matrix product
        self.project = nn.Linear(d_model, d_model, bias=bias)

    def queries_keys_values(self, x):
        """x: (B, T, C). Returns query, key, value, each (B, H, T, D)."""
        return tuple(split_heads(part, self.n_head) for part in self.qkv(x).chunk(3, dim=-1))

    def attention_weights(self, x, causal=False):
        """The weights (B, H, T, T) that `forward` uses but, on the fused path, never holds; for looking at."""
        mask = causal_mask(x.shape[1], x.device) if causal else None
        query, key, value = self.queries_keys_values(x)
        return scaled_dot_product_attention(query, key, value, mask)[1]

    def forward(self, x, causal=False):
        """x: (B, T, C); causal: a token sees itself and what is before it. Returns (B, T, C)."""
        query, key, value = self.queries_keys_values(x)
        dropout = self.dropout if self.training else 0.0
        if self.fused:
            heads = fused_attention(query, key, value, dropout_p=dropout, is_causal=causal)
        else:
            mask = causal_mask(x.shape[1], x.device) if causal else None
            _, weights = scaled_dot_product_attention(query, key, value, mask)
            heads = F.dropout(weights, dropout) @ value
        return self.project(merge_heads(heads))  # (B, H, T, D) -> (B, T, C)
