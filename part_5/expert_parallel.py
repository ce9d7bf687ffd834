"""Lesson 5.2 - expert parallelism: each of P processes holds E/P of the experts, and rows travel to them.

    rows of my tokens, by expert --all-to-all--> rows of my experts, by sender --sort--> Experts --and all the way back-->

Tokens are split over the processes as in data parallelism (lesson 4.2), experts are split too (Lepikhin et al. 2020, GShard,
section 3; Fedus et al. 2021, Switch Transformer, section 5). Router, shared experts and all else are the same everywhere.
So gradients differ:

    all else    each process has those of its own tokens: sum or average them over the processes, as ever
    experts     the owner has them of every process's tokens already, summed: no exchange, and nothing to sum up.
                Where the others are averaged, divide these by P. DDP must not see them: at its start it would give all
                processes rank 0's weights, and average after.

The M = N K rows of a process go out and come back, 2 M C numbers a forward pass and as many in the backward pass, of which
(P - 1) / P leave it where load is even. Capacity, balance loss and load are each process's own, from its own tokens.
"""

import torch
import torch.distributed as dist
from torch import nn

from part_5.experts import Experts
from part_5.moe import MoE


class AllToAll(torch.autograd.Function):
    """torch's all-to-all, which has no gradient, with one: each row's gradient goes back the way the row came.

    torch has had one in torch.distributed.nn, which newer versions call deprecated in favour of one without a public name.
    """

    @staticmethod
    def forward(ctx, rows, n_out, n_in, group):
        """rows: (sum of n_out, C), the first n_out[0] of them for rank 0, and so on; n_in: lists of P counts alike, of what
        each rank sends here. Returns (sum of n_in, C), by sender."""
        ctx.counts, ctx.group = (n_in, n_out), group
        received = rows.new_empty(sum(n_in), rows.shape[1])
        dist.all_to_all_single(received, rows.contiguous(), n_in, n_out, group=group)
        return received

    @staticmethod
    def backward(ctx, grad):
        """The same exchange with both counts in each other's place."""
        return AllToAll.apply(grad, *ctx.counts, ctx.group), None, None, None


def by_expert(counts):
    """How to sort rows that came ordered by sender, and by expert for each sender. Returns (order (M,), ends (E,) int32).

    counts: (P, E) int64, the rows of each expert from each sender. rows[order] is sorted by expert, and ends are the rows
    after each expert's last.
    """
    n_process, n_expert = counts.shape
    experts = torch.arange(n_expert, device=counts.device).repeat(n_process).repeat_interleave(counts.flatten())  # (M,)
    return experts.argsort(stable=True), counts.sum(dim=0).cumsum(0).to(torch.int32)


class ExpertParallel(Experts):
    """Takes the place of an `Experts` of E: its weights are those of E/P, under the same names.

    Whenever one process calls it, forward or backward, all must, even one without rows.
    """

    def __init__(self, experts, group=None):
        """experts: all E of them, the same in each process; rank r keeps a copy of the r-th block. group: the processes
        that share them, None for all. ValueError when P does not divide E, or when `experts` are spread already."""
        rank, n_process = dist.get_rank(group), dist.get_world_size(group)
        n_expert = len(experts.expand.weight)
        if isinstance(experts, ExpertParallel):
            raise ValueError(f"these {n_expert} experts are the share of one process already")
        if n_expert % n_process:
            raise ValueError(f"{n_expert} experts cannot be spread evenly over {n_process} processes")
        n_own = n_expert // n_process
        with torch.device("meta"):  # no weights are drawn
            super().__init__(n_own, experts.expand.in_features, experts.contract.in_features)
        for mine, whole in ((self.expand, experts.expand), (self.contract, experts.contract)):
            mine.weight = nn.Parameter(whole.weight.detach()[rank * n_own:(rank + 1) * n_own].clone())
        self.group, self.n_process = group, n_process

    def forward(self, x, ends):
        """x: (M, C), the rows of this process, sorted by expert; ends: (E,) int32. Returns (M, C), as `Experts` would."""
        counts = ends.diff(prepend=ends.new_zeros(1)).long().view(self.n_process, -1)  # (P, E/P), by owner
        received = torch.empty_like(counts)  # (P, E/P), by sender
        dist.all_to_all_single(received, counts, group=self.group)
        n_out, n_in = counts.sum(dim=1).tolist(), received.sum(dim=1).tolist()  # from here on a GPU is waited for

        rows = AllToAll.apply(x, n_out, n_in, self.group)
        order, own_ends = by_expert(received)
        rows = super().forward(rows.index_select(0, order), own_ends)
        rows = rows.index_select(0, order.argsort())  # back in the order they came in
        return AllToAll.apply(rows, n_in, n_out, self.group)


def shard_experts(model, group=None):
    """Spread the experts of each MoE layer in `model` over the processes, in place; before its optimizer is made.

    model: a MoE or a module that holds some, with equal weights in each process; group and ValueError: as `ExpertParallel`.
    """
    for layer in [module for module in model.modules() if isinstance(module, MoE)]:
        layer.experts = ExpertParallel(layer.experts, group)
