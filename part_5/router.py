"""Lesson 5.1 - routing: each token chooses K of E experts, and how much to listen to each.

    s = softmax(x W_r)                    E numbers a token: how well each expert fits
    experts = the K largest of s          weights = s of these, divided by their sum

Softmax first and then the K largest, renormalised, is the same as Mixtral's order, the K largest logits first and then the
softmax over these alone (Jiang et al. 2024, section 2.1): the sum over all experts cancels out. Without renormalising the
two orders differ. With K = 1 one must not renormalise: a weight that is always 1 would leave the router without a gradient
(Fedus et al. 2021, Switch Transformer, equation 2).

    sigmoid     s = sigmoid(x W_r): experts do not compete (DeepSeek-AI 2024, DeepSeek-V3, equations 12 to 16)
    noisy       logits + N(0, 1) softplus(x W_noise), in training: others get a chance (Shazeer et al. 2017, equation 4)
    bias        is added to s for the choice, not for the weights: balances without a loss (lesson 5.1, balancing.py)

All in fp32, also under autocast: two logits that bf16 cannot tell apart can mean another expert.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

SCORES = ("softmax", "sigmoid")


def check_choice(n_expert, top_k, score):
    """ValueError unless `top_k` of `n_expert` experts can be chosen by `score`."""
    if n_expert < 1:
        raise ValueError(f"n_expert must be at least 1, not {n_expert}")
    if not 1 <= top_k <= n_expert:
        raise ValueError(f"top_k must be from 1 to n_expert {n_expert}, not {top_k}")
    if score not in SCORES:
        raise ValueError(f"score must be one of {', '.join(SCORES)}, not {score}")


class Routing(NamedTuple):
    """What a router decided for N tokens, all of it in fp32."""

    experts: torch.Tensor  # (N, K) int64: whom each token chose, the best first
    weights: torch.Tensor  # (N, K): how much each of them counts
    probabilities: torch.Tensor  # (N, E): s of all experts, made to sum to 1
    logits: torch.Tensor  # (N, E)


def route(logits, top_k, score="softmax", renormalise=True, bias=None):
    """Choose `top_k` experts for each token. Returns a Routing.

    logits: (N, E) fp32; score: one of SCORES, how a logit becomes a score; renormalise: the weights of a token sum to 1;
    bias: (E,) fp32, added for the choice alone. ValueError for a choice that cannot be made.
    """
    check_choice(logits.shape[-1], top_k, score)
    scores = logits.softmax(dim=-1) if score == "softmax" else logits.sigmoid()  # (N, E)
    experts = (scores if bias is None else scores + bias).topk(top_k, dim=-1).indices  # (N, K)
    weights = scores.gather(-1, experts)
    if renormalise:
        weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-20)  # sigmoids can all be zero
    probabilities = scores if score == "softmax" else scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-20)
    return Routing(experts, weights, probabilities, logits)


class Router(nn.Module):
    """A linear layer from a token to one logit an expert, and the choice made of them."""

    def __init__(self, d_model, n_expert, top_k, score="softmax", renormalise=None, noisy=False):
        """d_model: width C; n_expert: E; top_k: K; renormalise: None for yes unless K is 1.

        `bias` (E,) is a buffer, not a weight: no gradient reaches it. ValueError for a choice that cannot be made.
        """
        super().__init__()
        check_choice(n_expert, top_k, score)
        self.n_expert, self.top_k, self.score = n_expert, top_k, score
        self.renormalise = top_k > 1 if renormalise is None else renormalise
        self.gate = nn.Linear(d_model, n_expert, bias=False)
        self.noise = nn.Linear(d_model, n_expert, bias=False) if noisy else None
        self.register_buffer("bias", torch.zeros(n_expert))

    def forward(self, x):
        """x: (N, C). Returns a Routing; noise, if any, is drawn in training mode alone."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            logits = F.linear(x, self.gate.weight.float())  # (N, E); the weights too may be held in bf16
            if self.noise is not None and self.training:
                logits = logits + torch.randn_like(logits) * F.softplus(F.linear(x, self.noise.weight.float()))
            return route(logits, self.top_k, self.score, self.renormalise, self.bias)
