"""Lesson 7.2 - the reward model: a transformer that reads prompt and answer, and gives one number.

    h = encoder(tokens)                     (T, C), every token sees those after it, too: no causal mask
    r = gain * (w . pool(h)) + bias         pool: mean over the answer's tokens, or the last token

The blocks and their weights are those of the fine-tuned model; only `w` is new, near zero. Rewards have no natural scale:
`gain` and `bias`, set after training, give the policy's own stories (or the answers of one's own file) mean 0 and standard
deviation 1.
"""

import dataclasses

import torch
from torch import nn

from part_0.cli import InputError
from part_2.checkpoint import load_model
from part_4.bpe_tokenizer import BPETokenizer
from part_6.chat_model import build_model

POOLINGS = ("mean", "last")


class RewardModel(nn.Module):
    """One number for each answer. The names of the encoder's weights are those of ModernGPT, behind "encoder."."""

    def __init__(self, encoder, pooling="mean", causal=False):
        """encoder: a ModernGPT, whose head is dropped; pooling: of POOLINGS; causal: with the decoder's mask, to compare."""
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, not {pooling}")
        self.encoder, self.pooling, self.causal = encoder, pooling, causal
        self.encoder.head = nn.Identity()
        self.score = nn.Linear(encoder.config.d_model, 1, bias=False)
        nn.init.normal_(self.score.weight, std=0.01)
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    def hidden_states(self, tokens, positions):
        """tokens, positions: (B, T) int64, position -1 for padding. Returns (B, T, C)."""
        return self.encoder.hidden_states(tokens, positions, causal=self.causal)

    def forward(self, tokens, positions, answer):
        """tokens, positions: (B, T) int64, position -1 for padding; answer: (B, T) bool, the tokens of the answer with its
        end token, at least one a row. Returns (B,) fp32 rewards."""
        hidden = self.hidden_states(tokens, positions).float()
        if self.pooling == "mean":
            weights = answer.float()
            pooled = (hidden * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True)
        else:
            pooled = hidden[torch.arange(len(tokens)), positions.argmax(1)]
        reward = (pooled * self.score.weight).sum(1)  # not as a product of matrices, which autocast would round to bf16
        return self.gain * reward + self.bias

    @torch.no_grad()
    def normalise(self, rewards):
        """Change gain and bias so that these rewards of the model, (N,), would have had mean 0 and standard deviation 1.

        InputError where they do not differ, or are no numbers: there is no scale then.
        """
        mean, std = rewards.mean(), rewards.std()
        if not std > 1e-6 * rewards.abs().max():  # they differ by rounding alone, if at all
            raise InputError(f"the reward model gives every answer the same reward, or no number (spread {std.item()}): try "
                             "a smaller --lr")
        self.gain.div_(std)
        self.bias.sub_(mean).div_(std)

    @property
    def blocks(self):
        """The encoder's blocks, whose matrices Muon takes."""
        return self.encoder.blocks

    def sizes(self):
        """What `build_reward_model` needs, a dict for a checkpoint."""
        return {**dataclasses.asdict(self.encoder.config), "pooling": self.pooling, "causal": self.causal}

    def n_params(self):
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())


def build_reward_model(sizes):
    """The RewardModel of a checkpoint's "model_config"."""
    sizes = dict(sizes)
    pooling, causal = sizes.pop("pooling"), sizes.pop("causal")
    return RewardModel(build_model(sizes), pooling, causal)


def load_reward_model(path, device="cpu"):
    """Rebuild a RewardModel (in eval mode) and its tokenizer from a checkpoint. Returns (model, tokenizer, state).

    InputError when there is no such checkpoint.
    """
    return load_model(path, device, build_reward_model, "part_7/train_reward_model.py",
                      lambda state: BPETokenizer.from_state(state["tokenizer"]))
