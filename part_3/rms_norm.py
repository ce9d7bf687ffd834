"""Lesson 3.1 - RMSNorm: a LayerNorm that neither centres nor shifts, only sets the length of each token's vector.

    RMSNorm(x) = x / sqrt(mean(x^2) + eps) * weight                       (Zhang & Sennrich 2019, equation 4)
    LayerNorm(x) = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias     (lesson 1.6)

One statistic instead of two, half the parameters, and the same training: what matters is the scale, not the centre.
"""

import torch
import torch.nn.functional as F
from torch import nn


def rms_norm(x, weight, eps=1e-5):
    """Root mean square normalisation over the last axis, written out.

    x: (..., C); weight: (C,). eps stands inside the root, so that a zero vector has a finite gradient too. The mean is taken
    in fp32 whatever x is: a bf16 sum over C terms would keep only three digits. Returns (..., C) in x's dtype.
    """
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps) * weight).to(x.dtype)


class RMSNorm(nn.Module):
    """RMSNorm with a learned scale. fused: torch's own function, the same formula, or the lines above."""

    def __init__(self, d_model, eps=1e-5, fused=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.eps = eps
        self.fused = fused

    def forward(self, x):
        """x: (..., C). Returns (..., C) in x's dtype."""
        weight = self.weight
        if self.fused:
            return F.rms_norm(x.float(), weight.shape, weight.float(), self.eps).to(x.dtype)
        return rms_norm(x, weight, self.eps)
