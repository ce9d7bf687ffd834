"""Lesson 6.2 - LoRA: the weights stay as they are, and next to each matrix a product of two thin ones is learnt.

    y = W x + (alpha / r) B A x            A: (r, n_in), random;   B: (n_out, r), zero at first, so that nothing changes

(Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1.) Gradients and optimizer moments are held
for r (n_in + n_out) numbers instead of n_in n_out. Afterwards W + (alpha / r) B A is one matrix again: what was learnt costs
nothing when the model is used.
"""

import math

import torch
from torch import nn

from part_5.experts import Experts
from part_5.router import Router


class LoRALinear(nn.Module):
    """A linear layer with a low-rank adapter; shapes and call as of `linear`, whose weights no longer learn.

    r: the rank; alpha: the factor's numerator, so that r can change without the learning rate. ValueError for a rank below
    1 or an alpha that is not above 0.
    """

    def __init__(self, linear, r, alpha):
        super().__init__()
        if r < 1:
            raise ValueError(f"the rank r must be at least 1, not {r}")
        if not 0 < alpha < math.inf:
            raise ValueError(f"alpha must be above 0 and finite, not {alpha}")
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / r
        like = dict(dtype=linear.weight.dtype, device=linear.weight.device)
        self.A = nn.Parameter(torch.empty(r, linear.in_features, **like))
        self.B = nn.Parameter(torch.zeros(linear.out_features, r, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as nn.Linear's own weights

    def forward(self, x):
        """x: (..., n_in). Returns (..., n_out)."""
        return self.linear(x) + self.scale * (x @ self.A.mT @ self.B.mT)

    @torch.no_grad()
    def merged(self):
        """The linear layer with W + (alpha / r) B A as its weight, which learns again."""
        self.linear.weight += self.scale * self.B @ self.A
        return self.linear.requires_grad_(True)


def add_lora(model, r, alpha):
    """Freeze the matrices of the model's blocks and give each linear layer there an adapter, in place. Returns the model.

    Norms, embeddings and head go on learning, the latter two because the template's tokens are new. Routers and experts
    (lessons 5.1 and 5.2) are frozen and have no adapters. ValueError for a model that has some already.
    """
    modules = list(model.blocks.modules())
    if any(isinstance(module, LoRALinear) for module in modules):
        raise ValueError("the model has LoRA adapters already: merge_lora puts them into the weights")
    for module in modules:
        if isinstance(module, (Router, Experts)):
            module.requires_grad_(False)
            continue
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear):
                setattr(module, name, LoRALinear(child, r, alpha))
    return model


def merge_lora(model):
    """Put W + (alpha / r) B A in place of every adapter of the model, in place: its weights have their old names again, and
    all of them learn. Returns the model."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, LoRALinear):
                setattr(module, name, child.merged())
    return model.requires_grad_(True)
