"""Lesson 4.5 - what a run measures: the loss on validation text, a sample, attention, and the figures at its end."""

import torch

from part_2.evaluate import figures_of_merit, split_losses, windows_loss
from part_3.generate import generate
from part_3.modern_gpt import attention_maps


def evaluate(model, batch, tokenizer, dtype, logger, now, config):
    """Log and return the loss on fixed validation windows in nats per token; log a sample and the attention of a window.

    batch: inputs and targets, each (B, T) on the model's device; logger: a RunLogger; now: a `Progress`; config: the run's.
    """
    size = config.micro_batch_size or len(batch[0])  # what fits into memory
    parts = zip(*(part.split(size) for part in batch))
    val_loss = sum(len(x) * windows_loss(model, x, y, dtype) for x, y in parts) / len(batch[0])
    logger.record(now.step, tokens=now.step * config.batch_size * config.block_size, seconds=now.seconds, val_loss=val_loss)
    if config.parallel != "fsdp":  # there each token would gather all the weights anew
        device = batch[0].device
        prompt, n_new = tokenizer.encode("The"), 80
        if config.positions not in ("rope", "none"):  # a table of positions has an end
            n_new = max(0, min(n_new, config.block_size - len(prompt)))
        [ids] = generate(model, [prompt], n_new, temperature=0.8,
                         generator=torch.Generator(device).manual_seed(config.seed))
        logger.sample(now.step, "The" + tokenizer.decode(ids.tolist()), val_loss=val_loss)
        logger.attention(now.step, attention_maps(model, batch[0][:1, :64]))
    return val_loss


def final_figures(model, val_tokens, tokenizer, dtype, config):
    """val_loss, perplexity and bits_per_byte over the first `eval_tokens` of the validation tokens, as in lesson 2.6."""
    tokens = val_tokens[:config.eval_tokens]
    n_bytes = len(tokenizer.decode_bytes(tokens[1:].tolist()))
    return figures_of_merit(split_losses(model, tokens, config.micro_batch_size or 64, dtype), n_bytes)
