"""Lesson 1.4 - a task whose attention patterns have a meaning: induction.

    h e l p x q h e l p x q h e l ...      the next letter is what followed when this one came before

Letters are random, so nothing but the sequence itself tells what comes next. Two layers of attention can solve it (Olsson
et al. 2022, "In-context Learning and Induction Heads"): the first notes at each place which letter stood before it, the
second looks for the place that noted the present letter, and copies the letter found there.
"""

import torch
from torch import nn

from part_1.layer_norm import LayerNorm
from part_1.multi_head import MultiHeadAttention
from part_1.positional_encoding import LearnedPositionalEncoding

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
N_TOKENS = 48  # length of a sequence
PERIODS = (6, 20)  # from, to (not included)


def repeating_sequences(batch_size):
    """Random letters with a random period. Returns tokens (B, T) and periods (B, 1): tokens[b, t] = tokens[b, t - period].

    The period differs from row to row: a head cannot get away with looking a fixed number of tokens back.
    """
    periods = torch.randint(*PERIODS, (batch_size, 1))
    letters = torch.randint(len(ALPHABET), (batch_size, N_TOKENS))
    return letters.gather(1, torch.arange(N_TOKENS) % periods), periods


class AttentionOnlyModel(nn.Module):
    """Two layers of attention on a residual stream and nothing else: the smallest model that can do induction."""

    def __init__(self, d_model, n_head):
        super().__init__()
        self.embed = nn.Embedding(len(ALPHABET), d_model)
        self.position = LearnedPositionalEncoding(N_TOKENS, d_model)
        for table in (self.embed, self.position):
            nn.init.normal_(table.weight, 0, 0.3)
        self.layers = nn.ModuleList(MultiHeadAttention(d_model, n_head, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(LayerNorm(d_model) for _ in range(3))  # before each layer, and before the head
        self.head = nn.Linear(d_model, len(ALPHABET), bias=False)

    def forward(self, tokens, weights=None):
        """tokens: (B, T). Returns logits (B, T, V). A list given as `weights` gets each layer's (B, H, T, T)."""
        x = self.embed(tokens) + self.position(torch.arange(tokens.shape[1]))  # (B, T, C)
        for norm, layer in zip(self.norms, self.layers):
            if weights is not None:
                weights.append(layer.attention_weights(norm(x), causal=True))
            x = x + layer(norm(x), causal=True)
        return self.head(self.norms[-1](x))

    @torch.no_grad()
    def attention_weights(self, tokens):
        """The attention weights of both layers, (2, B, H, T, T). tokens: (B, T)."""
        self(tokens, weights := [])
        return torch.stack(weights)


def offset_scores(weights, n_offsets=4):
    """The mean weight of each head on the token 0, 1, 2, ... back. weights: (B, H, T, T). Returns (H, n_offsets)."""
    return torch.stack([weights.diagonal(-k, dim1=2, dim2=3).mean((0, 2)) for k in range(n_offsets)], dim=1)


def induction_scores(weights, periods):
    """The mean weight of each head on what followed the present token in all earlier rounds together.

    weights: (B, H, T, T); periods: (B, 1). Counted are the queries whose token came before. Returns (H,).
    """
    t = torch.arange(weights.shape[-1])
    back = t[:, None] - t[None, :]  # (T, T): query position - key position
    followed = (back >= 0) & ((back + 1) % periods[:, :, None] == 0)  # (B, T, T)
    on_pattern = (weights * followed[:, None]).sum(-1).transpose(0, 1)  # (H, B, T)
    return on_pattern[:, t >= periods].mean(-1)  # t >= periods: (B, T)
