"""Lesson 5.2 - the mixture-of-experts layer: many feed-forward layers, of which each token uses K.

    MoE(x) = sum over the chosen experts e of  weight_e Expert_e(x)     (+ SharedExperts(x))

    dispatch   sort the N K choices by expert, gather the tokens in that order      (N, C) -> (M, C), M = N K
    experts    run each on its rows, once
    combine    multiply by the weights, add each row to its token                   (M, C) -> (N, C)

E experts hold E times the weights, at the FLOPs of K. By default no choice is dropped. With a capacity factor c an expert
takes ceil(c N K / E) rows in training and further ones are dropped, second choices before first ones (Lepikhin et al. 2020,
GShard, algorithm 1): what is dropped contributes nothing, and the token goes on with its residual. In eval mode nothing is
dropped, since a token's result must not depend on its neighbours, least of all on later ones. Shared experts are used by
every token (Dai et al. 2024, DeepSeekMoE, equation 9); side by side they are one wider SwiGLU.
"""

import math

import torch
from torch import nn

from part_3.swiglu import SwiGLU
from part_5.balancing import expert_load, load_balancing_loss, router_z_loss
from part_5.experts import Experts, product_dtype
from part_5.router import Router


def dispatch(experts, n_expert, capacity=None):
    """Sort the choices of N tokens by expert. Returns (choices (M,) int64, ends (E,) int32).

    experts: (N, K) int64; capacity: the most rows of one expert, None for any number. Choice k of token n has the number
    k N + n, so a first choice stands before all second ones and what overflows is taken from the end. ends: the row after
    each expert's last.
    """
    chosen, order = experts.T.flatten().sort(stable=True)  # (K N,)
    numbers = torch.arange(n_expert, device=chosen.device)
    ends = torch.searchsorted(chosen, numbers, right=True)
    if capacity is not None:
        starts = torch.searchsorted(chosen, numbers)
        place = torch.arange(len(chosen), device=chosen.device) - starts[chosen]  # within the expert's rows
        order = order[place < capacity]
        ends = (ends - starts).clamp(max=capacity).cumsum(0)
    return order, ends.to(torch.int32)


class MoE(nn.Module):
    """The layer that takes the place of a SwiGLU: (..., C) in, (..., C) out.

    After a pass in training mode it holds what lesson 5.1 needs: `balance_loss` and `z_loss` of that pass with their graph,
    and added up since `load` was last set to zero, `load` (E,) the choices of each expert and `n_dropped`.
    """

    def __init__(self, d_model, d_hidden, n_expert, top_k, n_shared=0, capacity_factor=None, score="softmax",
                 renormalise=None, noisy=False):
        """d_model: width C; d_hidden: inner width of each expert; n_expert: E; top_k: K; n_shared: experts for all tokens;
        the rest as of `Router`. ValueError for a layer that cannot be built."""
        super().__init__()
        for name, value, least in (("d_model", d_model, 1), ("d_hidden", d_hidden, 1), ("n_shared", n_shared, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if capacity_factor is not None and not 0 < capacity_factor < math.inf:
            raise ValueError(f"capacity_factor must be above 0 and finite, not {capacity_factor}")
        self.capacity_factor = capacity_factor
        self.router = Router(d_model, n_expert, top_k, score, renormalise, noisy)
        self.experts = Experts(n_expert, d_model, d_hidden)
        self.shared = SwiGLU(d_model, n_shared * d_hidden) if n_shared else None
        self.balance_loss = self.z_loss = None
        self.load, self.n_dropped = 0, 0

    # Not compiled: its sizes depend on the data, and torch's grouped product compiles in bf16 alone. As torch's optimizers
    # are marked: torch.compiler.disable does the same, but imports the compiler at once, which takes two seconds.
    @torch._disable_dynamo
    def forward(self, x):
        """x: (..., C). Returns (..., C)."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        N, E, K = len(tokens), self.router.n_expert, self.router.top_k
        routing = self.router(tokens)
        is_limited = self.training and self.capacity_factor is not None
        choices, ends = dispatch(routing.experts, E, math.ceil(self.capacity_factor * N * K / E) if is_limited else None)
        if self.training:
            self.balance_loss = load_balancing_loss(routing.probabilities, routing.experts)
            self.z_loss = router_z_loss(routing.logits)
            self.load = self.load + expert_load(routing.experts, E)
            self.n_dropped += N * K - len(choices)

        owners = choices % N  # whose choice it is, (M,)
        weights = routing.weights.T.flatten()[choices]
        # Converted before there are K of each; and the backward pass of tokens[owners] is slower than an index-select's.
        rows = self.experts(tokens.to(product_dtype(tokens)).index_select(0, owners), ends)  # (M, C)
        y = torch.zeros_like(tokens, dtype=rows.dtype).index_add_(0, owners, rows * weights[:, None].to(rows.dtype))
        if self.shared is not None:
            y = y + self.shared(tokens)
        return y.reshape(x.shape)

    @property
    def n_idle(self):
        """Weights that a token does not use: those of the experts that it did not choose."""
        each = sum(weight[0].numel() for weight in self.experts.parameters())
        return (self.router.n_expert - self.router.top_k) * each
