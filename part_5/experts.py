"""Lesson 5.2 - experts: E SwiGLU layers side by side, each run once over the rows that are its own.

    rows:  | expert 0 | expert 1 |  expert 3   |      sorted by expert; `ends` says where each one's rows end
    out_i = (SiLU(rows_i W_gate,i) * rows_i W_up,i) W_down,i

The weights are stacked, (E, out, in), so that one call does all experts: torch's grouped matrix product, on a GPU one
kernel (the idea of Gale et al. 2022, MegaBlocks, with block-sparse products), on a CPU a loop inside torch. There it pays,
with many rows, to finish one expert before the next: its hidden rows are then still in the cache. An expert without rows
has a gradient of zeros, since the stack has one.
"""

import torch
import torch.nn.functional as F
from torch import nn

from part_3.swiglu import SwiGLU

# Public from torch 2.10 on; 2.9 has it under another name.
grouped_mm = getattr(F, "grouped_mm", None) or torch._grouped_mm
GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MANY_ROWS = 256  # an expert: from here on a CPU is faster one expert after the other (lesson 5.2's page)


def grouped_linear(x, weight, ends):
    """The rows of each expert times its own matrix, as F.linear does it. Returns (M, out).

    x: (M, in), rows sorted by expert; weight: (E, out, in); ends: (E,) int32, the row after each expert's last.
    """
    aligned = all(width * x.element_size() % 16 == 0 for width in weight.shape[1:])  # in bytes; the kernels ask for it
    if x.device.type in ("cpu", "cuda") and x.dtype in GROUPED_DTYPES and aligned:
        return grouped_mm(x.contiguous(), weight.transpose(1, 2), offs=ends)
    parts = x.tensor_split(ends[:-1].tolist())
    return torch.cat([F.linear(rows, matrix) for rows, matrix in zip(parts, weight.unbind())])


def product_dtype(x):
    """The dtype in which matrix products of x run here: autocast's where that is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


class GroupedLinear(nn.Module):
    """E linear layers without bias, of one shape."""

    def __init__(self, n_expert, in_features, out_features):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(n_expert, out_features, in_features))
        nn.init.uniform_(self.weight, -in_features ** -0.5, in_features ** -0.5)  # as nn.Linear

    def forward(self, x, ends):
        """As `grouped_linear`; under autocast in its dtype."""
        weight = self.weight
        if torch.is_autocast_enabled(x.device.type):  # which itself does not know grouped products
            x, weight = x.to(product_dtype(x)), weight.to(product_dtype(x))
        return grouped_linear(x, weight, ends)


class Experts(SwiGLU):
    """E SwiGLU layers: `expand` and `contract` are stacks. As a SwiGLU, so that lesson 4.3's Muon tells gate from up."""

    def __init__(self, n_expert, d_model, d_hidden):
        """n_expert: E; d_model: width C; d_hidden: inner width of each."""
        nn.Module.__init__(self)  # not SwiGLU's, whose layers are replaced by stacks
        self.expand = GroupedLinear(n_expert, d_model, 2 * d_hidden)
        self.contract = GroupedLinear(n_expert, d_hidden, d_model)

    def forward(self, x, ends):
        """x: (M, C), rows sorted by expert; ends: (E,) int32, the row after each expert's last. Returns (M, C)."""
        if x.device.type == "cpu" and len(x) >= MANY_ROWS * len(ends):
            return self.one_by_one(x, ends)
        gate, up = self.expand(x, ends).chunk(2, dim=-1)
        return self.contract(F.silu(gate) * up, ends)

    def one_by_one(self, x, ends):
        """The same as `forward`, an expert after the other."""
        parts, outputs = x.tensor_split(ends[:-1].tolist()), []
        for rows, expand, contract in zip(parts, self.expand.weight.unbind(), self.contract.weight.unbind()):
            gate, up = F.linear(rows, expand).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, contract))
        return torch.cat(outputs)
