"""Lesson 1.5 - the feed-forward layer: each token alone, widened four times, bent by GELU, narrowed again.

    FFN(x) = GELU(x W1 + b1) W2 + b2                                     (Vaswani et al. 2017, equation 2, with GELU)
    GELU(x) = x Phi(x) = x/2 (1 + erf(x / sqrt 2))                       (Hendrycks & Gimpel 2016)
            ~ x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))              (same, section 2: the form GPT-2 was trained with)

Attention moves information between tokens; this is where two thirds of a block's weights sit and where it is worked on.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


def gelu(x):
    """The exact GELU, x times the probability that a standard normal is below x. Any shape."""
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x):
    """The tanh approximation of GELU. Any shape."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class FeedForward(nn.Module):
    """Linear, GELU, Linear on every token alone. torch's GELU computes the formulas above in one pass over memory."""

    def __init__(self, d_model, d_hidden=None, bias=True, approximate="none"):
        """d_model: width C; d_hidden: inner width, 4C when None; approximate: "none" (exact) or "tanh"."""
        super().__init__()
        d_hidden = 4 * d_model if d_hidden is None else d_hidden
        self.approximate = approximate
        self.expand = nn.Linear(d_model, d_hidden, bias=bias)
        self.contract = nn.Linear(d_hidden, d_model, bias=bias)

    def forward(self, x):
        """x: (..., C). Returns (..., C)."""
        return self.contract(F.gelu(self.expand(x), approximate=self.approximate))
