"""Reference answers to the exercises of Part 5."""

import torch


def gate_weights(logits, top_k):
    """Softmax, the K largest, divided by their sum unless there is only one."""
    weights, experts = logits.softmax(-1).topk(top_k, dim=-1)
    if top_k > 1:
        weights = weights / weights.sum(-1, keepdim=True)
    return torch.zeros_like(logits).scatter(-1, experts, weights)


def balance_loss(probabilities, experts):
    """f is counted, P is a mean."""
    n_expert = probabilities.shape[1]
    share = experts.flatten().bincount(minlength=n_expert) / experts.numel()
    return n_expert * (share * probabilities.mean(0)).sum()


def layer_weights(d_model, d_expert, n_expert, top_k, n_shared):
    """The router reads the token whatever it chooses; each expert has three matrices: gate, up and down."""
    router, expert = d_model * n_expert, 3 * d_model * d_expert
    return router + (n_expert + n_shared) * expert, router + (top_k + n_shared) * expert
