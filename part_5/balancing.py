"""Lesson 5.1 - balancing: what keeps a router from sending everything to a few experts.

    balance loss  E sum_i f_i P_i         f_i: expert i's share of the N K choices, P_i: its mean probability
    z-loss        mean (log sum_i exp(logit_i))^2
    bias          b_i <- b_i + rate sign(mean load - load_i), once a step

An expert that is chosen more often learns faster and is chosen more often still: left alone, routing collapses. The balance
loss (the idea: Shazeer et al. 2017; Lepikhin et al. 2020, GShard; this form, with K = 1: Fedus et al. 2021, Switch
Transformer, equations 4-6) counts all K choices here. It is 1 where the load is even, and E where, with K = 1, one expert
gets every token; f has no gradient, so it lowers P where f is high. The
z-loss (Zoph et al. 2022, ST-MoE, equation 5) keeps the logits small, where fp32 resolves them well. The bias (Wang et al.
2024, "Auxiliary-Loss-Free Load Balancing", algorithm 1; DeepSeek-V3, section 2.1.2) changes who is chosen and adds no
gradient at all that would pull against the task.
"""

import math

import torch


def expert_load(experts, n_expert):
    """How many choices fell on each expert: (N, K) int64 to (E,) fp32, without gradient."""
    chosen = experts.flatten()
    return torch.zeros(n_expert, device=chosen.device).index_add(0, chosen, torch.ones(len(chosen), device=chosen.device))


def load_balancing_loss(probabilities, experts):
    """E sum_i f_i P_i over the N tokens of a batch, a scalar: 1 where load and probabilities are even.

    probabilities: (N, E), rows sum to 1; experts: (N, K) int64, all K choices count. Where f and P order the experts alike
    it is at least 1 (Chebyshev's sum inequality); below 1 it is only while they disagree.
    """
    n_expert = probabilities.shape[-1]
    share = expert_load(experts, n_expert) / experts.numel()  # f, (E,)
    return n_expert * (share * probabilities.mean(dim=0)).sum()


def router_z_loss(logits):
    """The mean over tokens of the squared log of the softmax's denominator, a scalar. logits: (N, E)."""
    return logits.logsumexp(dim=-1).square().mean()


def updated_bias(bias, load, rate):
    """The bias after one step: `rate` up for each expert that had less than the mean load, `rate` down for more.

    bias: (E,); load: (E,) counts of the whole step, of all processes.
    """
    return bias + rate * torch.sign(load.mean() - load)


def load_entropy(load):
    """The entropy of the load's shares over its highest value, ln E: 1 is even, 0 is all on one expert.

    load: (..., E) counts, not all zero. Returns (...); a single expert is even.
    """
    entropy = torch.special.entr(load / load.sum(dim=-1, keepdim=True)).sum(dim=-1)
    highest = math.log(load.shape[-1])
    return entropy / highest if highest else torch.ones_like(entropy)


def max_violation(load):
    """How far the busiest expert is above the mean load: max / mean - 1, 0 is even (Wang et al. 2024, MaxVio). (..., E)."""
    return load.amax(dim=-1) / load.mean(dim=-1) - 1
