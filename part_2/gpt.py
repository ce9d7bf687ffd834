"""Lesson 2.4 - GPT: embed, add positions, stack Part 1's blocks, norm once more, and score every token of the vocabulary.

    x = E[tokens] + P[0 ... T-1];   x = block_l(x), l = 1 ... L;   logits = LN(x) W

(Radford et al. 2019, GPT-2.) With tied embeddings W is E transposed: what a token looks like going in is what it must
look like coming out (Press & Wolf 2017).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn

from part_1.layer_norm import LayerNorm
from part_1.positional_encoding import LearnedPositionalEncoding, SinusoidalPositionalEncoding
from part_1.transformer_block import TransformerBlock

POSITIONS = ("learned", "sinusoidal")


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT. d_model is C, block_size the longest T. ValueError for a shape that cannot be built."""

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    d_model: int
    dropout: float = 0.0
    bias: bool = True
    tie_embeddings: bool = False
    positions: str = "learned"

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "d_model"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.d_model % self.n_head:
            raise ValueError(f"d_model {self.d_model} must be divisible by n_head {self.n_head}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")
        if self.positions not in POSITIONS:
            raise ValueError(f"positions must be one of {', '.join(POSITIONS)}, not {self.positions}")


@torch.no_grad()
def scaled_initialisation(model, n_layer):
    """GPT-2's initialisation: weights from N(0, 0.02), biases 0. The two projections of each block that write to the
    residual stream get 0.02 / sqrt(2L), so that the stream's variance does not grow with the depth L."""
    for name, parameter in model.named_parameters():
        if name.endswith(("project.weight", "contract.weight")):
            parameter.normal_(0, 0.02 / math.sqrt(2 * n_layer))
        elif parameter.ndim >= 2:  # a matrix, or a stack of them
            parameter.normal_(0, 0.02)
        elif name.endswith("bias"):
            parameter.zero_()


class GPT(nn.Module):
    """A decoder-only Transformer language model."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        encoding = LearnedPositionalEncoding if config.positions == "learned" else SinusoidalPositionalEncoding
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.position_embedding = encoding(config.block_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            TransformerBlock(config.d_model, config.n_head, bias=config.bias, dropout=config.dropout)
            for _ in range(config.n_layer))
        self.norm = LayerNorm(config.d_model, bias=config.bias)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        scaled_initialisation(self, config.n_layer)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def forward(self, tokens):
        """tokens: (B, T) int64 with T <= block_size. Returns logits (B, T, V). ValueError for a longer T."""
        T = tokens.shape[1]
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit into a context of {self.config.block_size}")
        positions = torch.arange(T, device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))  # (B, T, C)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # (B, T, C) -> (B, T, V)

    def n_params(self):
        """Number of weights; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())
