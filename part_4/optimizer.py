"""Lesson 4.3 - optimizers: AdamW written out, and Muon, which sees that a matrix is a matrix.

    AdamW    m <- b1 m + (1 - b1) g         v <- b2 v + (1 - b2) g^2
             w <- (1 - lr decay) w - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    Muon     B <- mu B + G                  W <- (1 - lr decay) W - lr 0.2 sqrt(max(m, n)) orthogonalise(G + mu B)

AdamW (Kingma & Ba 2015, algorithm 1; decay apart from the gradient: Loshchilov & Hutter 2019) divides each number of the
gradient by its own usual size. Muon (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks") sets all
singular values of the momentum to about one instead, so that rare directions get as large a step as the dominant ones. The
factor 0.2 sqrt(max(m, n)) gives its step the size of AdamW's, whose lr and decay are then a start (Liu et al. 2025, "Muon is
Scalable for LLM Training", equation 4); on the small models of this part the best lr is some four times higher.
"""

import math

import torch
from torch.optim import Optimizer

from part_0.device import pick_precision
from part_2.optimization import parameter_groups
from part_3.attention import Attention
from part_3.swiglu import SwiGLU

OPTIMIZERS = ("adamw", "muon")


class AdamW(Optimizer):
    """AdamW in a plain loop. Its state has the names of torch.optim.AdamW's: a checkpoint of one goes into the other."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every weight that has a gradient. Returns what `closure`, if given, returned: the loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            lr, (beta1, beta2) = group["lr"], group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
                state["step"] += 1
                t = state["step"].item()
                mean = state["exp_avg"].mul_(beta1).add_(weight.grad, alpha=1 - beta1)
                square = state["exp_avg_sq"].mul_(beta2).addcmul_(weight.grad, weight.grad, value=1 - beta2)
                # Both began at zero and are too small at first, by exactly these factors.
                mean, square = mean / (1 - beta1 ** t), square / (1 - beta2 ** t)
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(lr * mean / (square.sqrt() + group["eps"]))
        return loss


def orthogonalise(matrix, steps=5, dtype=None):
    """The nearest matrix whose singular values are all one, or nearly: U V^T of the singular value decomposition U S V^T.

        X <- a X + b (X X^T) X + c (X X^T)^2 X,        which takes each singular value s to  a s + b s^3 + c s^5

    (Newton-Schulz, with Jordan et al.'s coefficients.) These lift small values fast and then leave them between 0.7 and 1.2
    instead of at one, which costs nothing in training.

    matrix: (..., m, n), each one on its own; dtype: of the products, `pick_precision("auto", ...)` when None. Returns
    (..., m, n) in the dtype of `matrix`.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(pick_precision("auto", matrix.device) if dtype is None else dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # X X^T is the smaller of the two products for a wide matrix
        x = x.mT
    # No singular value is above the Frobenius norm: with it divided out all are in [0, 1], where the iteration converges.
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT  # (..., m, m)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(Optimizer):
    """Muon with Nesterov momentum, for the hidden matrices of a model: weights (m, n), or stacks of such (..., m, n).

    ValueError for a weight with fewer axes: a norm's scale has no singular values. Embeddings and the head are matrices
    in form only (a row a token) and are better left to AdamW (Jordan et al. 2024).
    """

    def __init__(self, params, lr=1e-3, momentum=0.95, weight_decay=0.1, steps=5, rows=None):
        """steps: of the Newton-Schulz iteration; rows: where a weight is several matrices one above the other, the list of
        their numbers of rows; None for a single one. Like the others it can be set for each group."""
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, steps=steps, rows=rows))
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.ndim < 2:
                    raise ValueError(f"Muon orthogonalises matrices; a weight of shape {tuple(weight.shape)} is none")

    @torch.no_grad()
    def step(self, closure=None):
        """One update of every weight that has a gradient. Returns what `closure`, if given, returned: the loss."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].mul_(mu).add_(weight.grad)
                update = weight.grad + mu * momentum
                # FSDP2 gives each process some of the rows, but the singular values are those of all of them together.
                is_share = hasattr(update, "full_tensor")
                whole = update.full_tensor() if is_share else update
                parts = whole.split(group["rows"] or whole.shape[-2], dim=-2)
                whole = torch.cat([0.2 * math.sqrt(max(part.shape[-2:])) * orthogonalise(part, group["steps"])
                                   for part in parts], dim=-2)
                if is_share:
                    from torch.distributed.tensor import distribute_tensor  # here, because importing it takes a second
                    whole = distribute_tensor(whole, update.device_mesh, update.placements, src_data_rank=None)
                weight.mul_(1 - lr * group["weight_decay"])
                weight.sub_(lr * whole)
        return loss


def matrices_of_blocks(model):
    """The matrices of `model.blocks` as groups for Muon: a list of dicts with the keys "params" and "rows".

    Query, key and value, and gate and up, are one weight each but matrices of their own. As one they would share singular
    vectors: in the setting of demo_optimizer.py the loss then ends at 1.93 instead of 1.65, nearly all of it due to qkv.
    """
    rows = {}
    for module in model.blocks.modules():
        if isinstance(module, Attention):
            rows[id(module.qkv.weight)] = [n * module.d_head for n in (module.n_head, module.n_kv_head, module.n_kv_head)]
        elif isinstance(module, SwiGLU):
            rows[id(module.expand.weight)] = [module.contract.in_features] * 2
    groups = {}
    for weight in model.blocks.parameters():
        if weight.ndim >= 2:
            own = rows.get(id(weight))
            groups.setdefault(str(own), {"params": [], "rows": own})["params"].append(weight)
    return list(groups.values())


def build_optimizers(model, name, lr, beta2, weight_decay, fused=True):
    """The optimizers of a model, as a list; together they hold every weight exactly once.

    name: of OPTIMIZERS. "adamw": torch's AdamW on all weights. "muon": Muon on the matrices of `model.blocks`, AdamW on the
    rest (embeddings, head, norms, biases). lr, weight_decay: the same for both; only the linear layers' matrices decay, as
    in lesson 2.4. beta2: AdamW's; fused: its one-kernel version. ValueError for another name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, not {name}")
    groups = parameter_groups(model, weight_decay)
    optimizers = []
    if name == "muon":
        hidden = matrices_of_blocks(model)
        optimizers.append(Muon(hidden, lr=lr, weight_decay=weight_decay))
        taken = {id(weight) for group in hidden for weight in group["params"]}
        groups = [group | {"params": [weight for weight in group["params"] if id(weight) not in taken]} for group in groups]
    # With tied embeddings nothing is left to decay; a distributed checkpoint cannot restore an empty group.
    groups = [group for group in groups if group["params"]]
    return [*optimizers, torch.optim.AdamW(groups, lr=lr, betas=(0.9, beta2), fused=fused)]


def set_learning_rate(optimizers, lr):
    """Let all weights of a list of optimizers learn at `lr` from now on."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
