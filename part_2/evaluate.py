"""Lesson 2.6 - evaluation: every token of the validation split is predicted once.

    loss = mean -ln p(token | what is before it in its window)        nats per token
    perplexity = exp(loss)            as unsure as among this many equally likely tokens
    bits per byte = loss / ln 2 * tokens / bytes      the same for every tokenizer, and what a compressor would need

The windows lie end to end without overlap, so the first token of a window is predicted from one token and the last from
block_size of them.
"""

import math

import torch

from part_0.device import autocast
from part_2.dataset import windows_at
from part_2.loss import token_losses


@torch.no_grad()
def split_losses(model, tokens, batch_size=64, dtype=torch.float32):
    """The loss of each token of a split but its first, which nothing comes before.

    tokens: (N,) with N > block_size; dtype: the matrix products' precision. Returns (N-1,) fp32 nats, on the CPU. The
    model is left in the mode it was in.
    """
    was_training, block_size = model.training, model.config.block_size
    device = next(model.parameters()).device
    model.eval()
    n_whole = (len(tokens) - 1) // block_size
    starts = torch.arange(n_whole) * block_size
    batches = [windows_at(tokens, part, block_size) for part in starts.split(batch_size)]
    if n_whole * block_size < len(tokens) - 1:  # the rest is one shorter window
        rest = tokens[n_whole * block_size:].long()[None]
        batches.append((rest[:, :-1], rest[:, 1:]))
    losses = []
    for inputs, targets in batches:
        with autocast(device, dtype):
            logits = model(inputs.to(device))
        losses.append(token_losses(logits, targets.to(device)).flatten().cpu())
    model.train(was_training)
    return torch.cat(losses)


@torch.no_grad()
def windows_loss(model, inputs, targets, dtype=torch.float32):
    """The mean loss of a fixed set of windows, in nats per token: the quick look during training.

    inputs, targets: (B, T) on the model's device. The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    with autocast(inputs.device, dtype):
        logits = model(inputs)
    model.train(was_training)
    return token_losses(logits, targets).mean().item()


def figures_of_merit(losses, n_bytes):
    """losses: (N,) nats; n_bytes: what the N tokens decode to. Returns a dict: val_loss, perplexity, bits_per_byte."""
    loss = losses.double().mean().item()
    return {"val_loss": loss, "perplexity": math.exp(min(loss, 700.0)),  # exp(710) is too large for a float
            "bits_per_byte": loss / math.log(2) * len(losses) / n_bytes}
