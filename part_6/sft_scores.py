"""Lesson 6.4 - the figures of a fine-tuning run: the loss of its answers, tasks answered rightly, and what was forgotten."""

import torch

from part_0.cli import InputError
from part_0.device import autocast
from part_2.evaluate import figures_of_merit, split_losses
from part_2.loss import token_losses
from part_4.bpe_tokenizer import BPETokenizer
from part_6.collator import IGNORE
from part_6.evaluation import answer, judge, summarise
from part_6.sft_data import base_text, make_batch


@torch.no_grad()
def answer_losses(model, examples, block_size, dtype=torch.float32, batch_size=256):
    """The loss of every token to be learnt: (N,) fp32 nats, on the CPU. examples: pairs as from `shift`; block_size: tokens
    a row; dtype: the matrix products' precision. The model is left in the mode it was in."""
    was_training, device = model.training, model.head.weight.device
    model.eval()
    losses = []
    for start in range(0, len(examples), batch_size):
        batch = make_batch(examples[start:start + batch_size], block_size)[0].to(device)
        with autocast(device, dtype):
            logits = model(batch.inputs, batch.positions, segments=batch.segments)
        kept = batch.targets != IGNORE
        losses.append(token_losses(logits[kept], batch.targets[kept]).cpu())
    model.train(was_training)
    return torch.cat(losses)


def answer_figures(model, tokenizer, examples, block_size, dtype=torch.float32):
    """val_loss, perplexity and bits_per_byte of the answers; the end tokens' losses count, though they have no bytes."""
    ids = [target for _, targets in examples for target in targets if target != IGNORE and target < len(tokenizer.ranks)]
    return figures_of_merit(answer_losses(model, examples, block_size, dtype), len(tokenizer.decode_bytes(ids)))


def task_scores(model, tokenizer, tasks, when):
    """The share of `tasks` that is answered rightly, greedily and sampled at temperature 1: a dict of exact_match_<when> and
    sampled_exact_match_<when>, means over the exact families, and the same with the name of each family behind."""
    scores = {}
    for name, temperature in (("exact_match", 0.0), ("sampled_exact_match", 1.0)):
        records = judge(tasks, answer(model, tokenizer, [task.prompt for task in tasks], temperature))
        for family, (mean, *_) in summarise(records).items():
            scores[f"{name}_{when}" + ("" if family == "mean" else f"_{family}")] = mean
    return scores


def base_loss(model, base_state, dtype, when, say):
    """{"base_val_loss_<when>": the loss on the base model's validation text in nats per token}.

    base_state: the base model's checkpoint, which names the text; say: is told why nothing is returned where that is gone.
    """
    try:
        text = base_text(base_state["config"]["data"])
    except InputError as error:
        say(f"what fine-tuning forgets is not measured: {error}")
        return {}
    tokens = BPETokenizer.from_state(base_state["tokenizer"]).encode_to_tensor(text, allow_special=True)  # as it was read
    return {f"base_val_loss_{when}": split_losses(model, tokens, dtype=dtype).mean().item()}
