"""Lesson 3.3 - SwiGLU: a feed-forward layer in which one projection opens and closes the gates of another.

    SwiGLU(x) = (SiLU(x W_gate) * (x W_up)) W_down          SiLU(z) = z sigmoid(z)
    FFN(x)    = GELU(x W_1) W_2                             (lesson 1.5)

(Shazeer 2020, "GLU Variants Improve Transformer", equation 6.) Three matrices instead of two: at a hidden width of 2/3 of
4C = 8/3 C both layers have the same number of weights.
"""

import math

import torch.nn.functional as F
from torch import nn


def swiglu_width(d_model, multiple_of=8):
    """8/3 C, rounded up to a multiple, because hardware multiplies in tiles: the width that equals an FFN of 4C."""
    return math.ceil(8 * d_model / 3 / multiple_of) * multiple_of


class SwiGLU(nn.Module):
    """The gated feed-forward layer. W_gate and W_up are one matrix product: `expand` gives (gate, up) side by side."""

    def __init__(self, d_model, d_hidden=None, bias=False):
        """d_model: width C; d_hidden: inner width, `swiglu_width(C)` when None."""
        super().__init__()
        d_hidden = swiglu_width(d_model) if d_hidden is None else d_hidden
        self.expand = nn.Linear(d_model, 2 * d_hidden, bias=bias)
        self.contract = nn.Linear(d_hidden, d_model, bias=bias)

    def forward(self, x):
        """x: (..., C). Returns (..., C)."""
        gate, up = self.expand(x).chunk(2, dim=-1)
        return self.contract(F.silu(gate) * up)
