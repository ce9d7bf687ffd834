"""Lesson 6.2 - the model to fine-tune: a base model with room for the template's tokens, and how it is loaded again."""

import dataclasses

import torch

from part_2.checkpoint import load_model as load_part_2_model
from part_3.modern_config import ModernGPTConfig
from part_4.bpe_tokenizer import BPETokenizer
from part_5.hybrid import HybridConfig, hybrid_gpt
from part_6.lora import add_lora, merge_lora

TRAINER = "part_6/train_sft.py"


@torch.no_grad()
def resize_vocabulary(model, vocab_size):
    """The model with `vocab_size` tokens, at least as many as it has. The weights are copies; new rows of embedding and head
    are the mean of the old ones, so that a new token begins as an average one (Hewitt 2021, "Initializing New Word
    Embeddings for Pretrained Language Models"). ValueError for fewer."""
    old = model.config.vocab_size
    if vocab_size < old:
        raise ValueError(f"a vocabulary of {old} cannot shrink to {vocab_size}")
    larger = hybrid_gpt(dataclasses.replace(model.config, vocab_size=vocab_size)).to(model.head.weight.device)
    weights = model.state_dict()
    for name in ("token_embedding.weight", "head.weight"):
        rows = weights[name]
        weights[name] = torch.cat((rows, rows.mean(dim=0, keepdim=True).expand(vocab_size - old, -1)))
    larger.load_state_dict(weights)
    return larger.train(model.training)


def build_model(sizes):
    """The model of a checkpoint's "model_config": dense, with experts, or (of this part) with LoRA adapters."""
    sizes = dict(sizes)
    lora = sizes.pop("lora", None)
    model = hybrid_gpt((HybridConfig if "n_expert" in sizes else ModernGPTConfig)(**sizes))
    return add_lora(model, **lora) if lora else model


def load_model(path, device="cpu", trainer=TRAINER):
    """Rebuild model (in eval mode) and tokenizer from any checkpoint of the chain: of Part 4, Part 5, this part or later.

    LoRA's adapters are merged into the weights. trainer: named where there is none. Returns (model, tokenizer, state).
    InputError when there is no such checkpoint.
    """
    model, tokenizer, state = load_part_2_model(path, device, build_model, trainer,
                                                lambda state: BPETokenizer.from_state(state["tokenizer"]))
    return merge_lora(model), tokenizer, state
