"""What the tests of Part 6 share: a tiny base model as a checkpoint, and a small file of conversations."""

import dataclasses
import json

import torch

from part_2.checkpoint import save_checkpoint
from part_2.tinyworld_text import tinyworld
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe

WORLD = tinyworld(20_000)


def make_base(path, data, model=None, **changes):
    """Write a checkpoint as of part_4/train.py with random weights; `data` is the text that it names. Returns the model."""
    ranks = train_bpe(count_chunks([WORLD]), 400, 1)[1]
    tokenizer = BPETokenizer(ranks)
    torch.manual_seed(0)
    model = model or ModernGPT(ModernGPTConfig(**{**dict(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=2,
                                                         d_model=16, qk_norm=True), **changes}))
    save_checkpoint(path, {"step": 1, "model": model.state_dict(), "model_config": dataclasses.asdict(model.config),
                           "tokenizer": tokenizer.state(), "config": {"data": str(data)}})
    return model


def write_lines(path, records):
    """Write a JSON object a line; returns the path."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path
