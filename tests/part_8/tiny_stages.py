"""What the tests of Parts 8 and 9 share: tiny stages before them, as checkpoints, and how runs are compared."""

import dataclasses
import json

import torch

from part_2.checkpoint import load_checkpoint, save_checkpoint
from part_2.tinyworld_text import tinyworld
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernGPT
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_6.prompt_template import chat_tokenizer
from part_7.reward_model import RewardModel

TOKENIZER = chat_tokenizer(BPETokenizer(train_bpe(count_chunks([tinyworld(20_000)]), 400, 1)[1]))
CLOCK = {"seconds", "tokens_per_second", "seconds_generation", "seconds_scoring",
         "seconds_learning"}  # what no two runs share


def tiny_model(seed=0, **changes):
    """A ModernGPT of random weights with the tokenizer's vocabulary."""
    torch.manual_seed(seed)
    sizes = dict(vocab_size=TOKENIZER.vocab_size, block_size=64, n_layer=2, n_head=2, d_model=16, qk_norm=True)
    return ModernGPT(ModernGPTConfig(**{**sizes, **changes})).eval()


def make_sft(path, model=None):
    """Write a checkpoint as of part_6/train_sft.py. Returns its path."""
    model = tiny_model() if model is None else model
    save_checkpoint(path, {"step": 1, "model": model.state_dict(), "model_config": dataclasses.asdict(model.config),
                           "tokenizer": TOKENIZER.state(), "config": {}})
    return path


def make_reward_model(path, model=None):
    """Write a checkpoint as of part_7/train_reward_model.py, whose rewards differ between answers. Returns its path."""
    if model is None:
        model = RewardModel(tiny_model(1))
        model.gain.fill_(20.0)
    save_checkpoint(path, {"step": 1, "model": model.state_dict(), "model_config": model.sizes(),
                           "tokenizer": TOKENIZER.state(), "config": {}})
    return path


def records(out):
    """The lines of a run's metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def without_clock(record):
    """What two equal runs have in common."""
    return {name: value for name, value in record.items() if name not in CLOCK}


def weights(path):
    """The weights of a checkpoint."""
    return load_checkpoint(path)["model"]


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def assert_close(ours, theirs, atol):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=atol, rtol=1e-4), name
