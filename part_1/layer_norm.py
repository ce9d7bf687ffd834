"""Lesson 1.6 - layer normalisation and the residual connection: what lets a deep stack of layers train at all.

    LN(x) = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias           (Ba et al. 2016; var divides by C, not C-1)
    y = x + f(x)                                                          (He et al. 2016)

The norm puts every token's vector on one scale, whatever the layers before did. The residual gives the gradient a way
past each layer: dy/dx = 1 + df/dx, so it cannot vanish merely because f is small.
"""

import torch
import torch.nn.functional as F
from torch import nn


def layer_norm(x, weight, bias=None, eps=1e-5):
    """Layer normalisation over the last axis, written out.

    x: (..., C); weight, bias: (C,). The statistics are taken in fp32 whatever x is: a bf16 sum over C terms would keep
    only three digits. Returns (..., C) in x's dtype.
    """
    wide = x.float()
    mean = wide.mean(dim=-1, keepdim=True)
    variance = (wide - mean).square().mean(dim=-1, keepdim=True)
    normalised = (wide - mean) * torch.rsqrt(variance + eps) * weight
    return (normalised if bias is None else normalised + bias).to(x.dtype)


class LayerNorm(nn.Module):
    """Layer normalisation with a learned scale and shift.

    fused: use torch's kernel, the same formula in one pass over memory and in fp32 under autocast; or the lines above.
    """

    def __init__(self, d_model, bias=True, eps=1e-5, fused=True):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(d_model))
        self.bias = nn.Parameter(torch.zeros(d_model)) if bias else None
        self.eps = eps
        self.fused = fused

    def forward(self, x):
        """x: (..., C). Returns (..., C)."""
        if self.fused:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return layer_norm(x, self.weight, self.bias, self.eps)
