"""Lesson 1.7 - the pre-norm Transformer block: attention moves, the feed-forward layer works, the residual keeps.

    x <- x + Attention(LN(x))
    x <- x + FFN(LN(x))

The norm stands inside the branch (Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", figure
1b), so the sum x runs from the first block to the last untouched: the residual stream. GPT-2 and its heirs are stacks
of exactly this.
"""

import torch.nn.functional as F
from torch import nn

from part_1.feed_forward import FeedForward
from part_1.layer_norm import LayerNorm
from part_1.multi_head import MultiHeadAttention


class TransformerBlock(nn.Module):
    """One block: (B, T, C) in, (B, T, C) out."""

    def __init__(self, d_model, n_head, d_hidden=None, bias=True, dropout=0.0):
        """d_hidden: the feed-forward layer's inner width, 4C when None; dropout: on the attention weights and branches."""
        super().__init__()
        self.norm_1 = LayerNorm(d_model, bias=bias)
        self.attention = MultiHeadAttention(d_model, n_head, bias=bias, dropout=dropout)
        self.norm_2 = LayerNorm(d_model, bias=bias)
        self.feed_forward = FeedForward(d_model, d_hidden, bias=bias)
        self.dropout = dropout

    def forward(self, x, causal=True):
        """x: (B, T, C); causal: a token sees itself and what is before it. Returns (B, T, C)."""
        x = x + F.dropout(self.attention(self.norm_1(x), causal), self.dropout, self.training)
        return x + F.dropout(self.feed_forward(self.norm_2(x)), self.dropout, self.training)
