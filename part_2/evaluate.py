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


def windows_in_order(tokens, block_size, batch_size):
    """All windows of tokens (N,), end to end, at most `batch_size` at a time; what is left over is one shorter window.

    Yields inputs and targets, each (B, T) int64.
    """
    n_whole = (len(tokens) - 1) // block_size
    for starts in (torch.arange(n_whole) * block_size).split(batch_size):
        yield windows_at(tokens, starts, block_size)
    rest = tokens[n_whole * block_size:].long()[None]
    if rest.shape[1] > 1:
        yield rest[:, :-1], rest[:, 1:]


@torch.no_grad()
def split_losses(model, tokens, batch_size=64, dtype=torch.float32):
    """The loss of each token of a split but its first, which nothing comes before.

    tokens: (N,) with N > block_size; dtype: the matrix products' precision. Returns (N-1,) fp32 nats, on the CPU. The
    model is left in the mode it was in.
    """
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    losses = []
    for inputs, targets in windows_in_order(tokens, model.config.block_size, batch_size):
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
