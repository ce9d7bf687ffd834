"""Lesson 4.2 - gradient accumulation: a batch that does not fit into memory, in pieces that do.

    loss = 1/N sum_i l_i = sum over micro-batches m of  1/N sum_{i in m} l_i             N: kept targets of the whole batch

Gradients add up, so N micro-batches give what one batch N times as large gives, if every token weighs the same: each
micro-batch's *sum* is divided by the count of the whole batch. The mean of micro-batch means is something else as soon as
they hold different numbers of targets, as they do where prompts or padding are masked. A loss of a model's own layers
(lesson 5.1) is no sum over tokens: of it the mean over micro-batches is taken.
"""

import math

import torch
import torch.nn.functional as F

from part_0.device import autocast
from part_4.distributed import gradient_sync, sum_over_processes, world_size


def accumulate_gradients(model, inputs, targets, n_micro=1, dtype=torch.float32, scaler=None, ignore_index=-100,
                         auxiliary_loss=None, context=None):
    """Add the gradient of the batch's mean loss to the weights' `.grad`, one micro-batch after the other.

    model: called with (b, T) tokens, gives logits (b, T, V); may be DDP or FSDP, then the mean is over the batches of all
    processes. inputs, targets: (B, T) int64 on the model's device, `n_micro` dividing B; dtype: the matrix products'
    precision; scaler: fp16's, scales the gradients; auxiliary_loss: called after each forward pass, gives a scalar that is
    added to the loss; context: name -> (B, T) tensor, split like the inputs and passed to the model by that name, as the
    `positions` and `segments` of packed rows are (lesson 6.2). Returns the mean loss in nats without `auxiliary_loss`, a
    scalar without graph, the same in every process. ValueError when `n_micro` does not divide B, when there is no target
    to learn from, or when a tensor of `context` has another number of rows.
    """
    if n_micro < 1 or len(inputs) % n_micro:
        raise ValueError(f"a batch of {len(inputs)} cannot be split into {n_micro} micro-batches of one size")
    context = context or {}
    for name, tensor in context.items():
        if len(tensor) != len(inputs):
            raise ValueError(f"{name!r} has {len(tensor)} rows, the batch {len(inputs)}: each row needs its own")
    context_parts = {name: tensor.chunk(n_micro) for name, tensor in context.items()}
    [n_kept] = sum_over_processes([int((targets != ignore_index).sum())], inputs.device)
    if n_kept == 0:
        raise ValueError(f"every target is ignore_index {ignore_index}: there is nothing to average")
    total = torch.zeros((), device=inputs.device)
    for i, (x, y) in enumerate(zip(inputs.chunk(n_micro), targets.chunk(n_micro))):
        last = i == n_micro - 1
        with gradient_sync(model, on=last):  # once for all micro-batches
            with autocast(inputs.device, dtype):
                logits = model(x, **{name: parts[i] for name, parts in context_parts.items()})
            # torch's own fused form of lesson 2.3's loss, for speed
            losses = F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), ignore_index=ignore_index, reduction="sum")
            loss = losses / n_kept
            scaled = loss * world_size()  # DDP and FSDP take the mean over processes; a sum is wanted
            if auxiliary_loss is not None:
                scaled = scaled + auxiliary_loss() / n_micro
            (scaled if scaler is None else scaler.scale(scaled)).backward()
        total += loss.detach()
    if world_size() > 1:
        torch.distributed.all_reduce(total)
    return total


def clipped_update(model, optimizers, scaler, max_norm, loss):
    """One step of all `optimizers` on the gradients, which are then cleared.

    max_norm: the norm of all gradients together is clipped to it; scaler: fp16's, which also lowers its scale where a
    gradient is not finite; loss: the step's loss. Returns the norm before clipping, a float, and whether the weights were
    updated: they are not where loss or norm is not finite.
    """
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    grad_norm = float(grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm)  # FSDP2's is in shards
    is_finite = math.isfinite(grad_norm) and math.isfinite(loss)
    for optimizer in optimizers:
        if is_finite:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return grad_norm, is_finite
