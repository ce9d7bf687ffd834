"""Lesson 4.3 - a model for the speedrun: what the last few characters say is looked up, not computed.

    x_t = E[c_t] + W sum_n D_n[hash(c_{t-n+1} ... c_t)],  n = 2 ... N;        then Part 3's blocks, norm and head

Most of what a small character model learns first are the odds after the last two, three, four characters. Blocks build these
from matrix products; a table holds a vector for each n-gram, which costs weights but no FLOPs. There are more n-grams than
rows: a hash assigns them, and those that meet share a row (Weinberger et al. 2009, "Feature Hashing"; hashed n-gram vectors:
Bojanowski et al. 2017, "fastText"; under a Transformer: Pagnoni et al. 2024, "Byte Latent Transformer", section 3.2.1). The
tables start at zero and are learned by gradient descent like the rest; nothing is counted. In a long run they know the
training text by heart, unless whole rows are dropped now and then.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from part_2.dataset import n_windows, windows_at
from part_2.gpt import scaled_initialisation
from part_3.modern_config import ModernGPTConfig
from part_3.modern_gpt import ModernBlock
from part_3.rms_norm import RMSNorm
from part_3.rope import rotation
from part_4.optimizer import Muon

GOLDEN = 2654435769  # 2^32 / 1.618...: multiples of it spread neighbouring numbers well (Knuth, TAOCP 3, section 6.4)


@dataclass(frozen=True)
class NgramGPTConfig:
    """The shape of a NgramGPT. ValueError for one that cannot be built.

    n_layer: blocks, 0 for tables, norm and head alone; n_gram: N, 1 for a ModernGPT without tables; n_rows: of each table;
    d_table: a row's width, projected to C; dropout: of what a block adds; ngram_dropout: the probability that a token does
    without an order's row. Without tables their numbers are 0.
    """

    vocab_size: int
    block_size: int
    n_layer: int
    n_head: int
    d_model: int
    n_gram: int = 1
    n_rows: int = 0
    d_table: int = 0
    dropout: float = 0.0
    ngram_dropout: float = 0.0

    def __post_init__(self):
        of_tables = self.n_rows, self.d_table, self.ngram_dropout
        if self.n_gram == 1 and any(of_tables):
            raise ValueError(f"n_gram 1 has no tables: n_rows, d_table and ngram_dropout must be 0, not {of_tables}")
        least_rows = int(self.n_gram > 1)
        for name, least in (("n_layer", 0), ("n_gram", 1), ("n_rows", least_rows), ("d_table", least_rows)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if not 0 <= self.ngram_dropout < 1:
            raise ValueError(f"ngram_dropout must be in [0, 1), not {self.ngram_dropout}")
        self.block_config()  # refuses the rest

    def block_config(self):
        """The config of the blocks, which are Part 3's, with QK-norm."""
        return ModernGPTConfig(self.vocab_size, self.block_size, max(self.n_layer, 1), self.n_head, self.d_model,
                               qk_norm=True, dropout=self.dropout)


def ngram_rows(tokens, n_gram, vocab_size, n_rows):
    """The row of each n-gram that ends at a token, for n = 2 ... N.

    tokens: (B, T) int64, below vocab_size. An n-gram is a number with n digits of base V+1, a digit being token + 1, or 0
    before the first token. It is hashed to 0 ... n_rows-1; order n's rows stand behind those of n-1. Returns (B, T, N-1).
    """
    number, rows = tokens + 1, []
    for n in range(2, n_gram + 1):
        earlier = F.pad(tokens + 1, (n - 1, 0))[:, :tokens.shape[1]]  # the token n-1 places back
        number = number + earlier * pow(vocab_size + 1, n - 1, 2**32)  # the hash reads 32 bits, so these are enough
        spread = number * GOLDEN & 0xFFFFFFFF
        rows.append((n - 2) * n_rows + (spread * n_rows >> 32))
    return torch.stack(rows, dim=-1)


class NgramGPT(nn.Module):
    """Part 3's blocks on token and n-gram vectors (n_gram 1: none). The head starts at zero: the first loss is ln V."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        C = config.d_model
        self.token_embedding = nn.Embedding(config.vocab_size, C)
        if config.n_gram > 1:
            self.ngram_table = nn.Embedding((config.n_gram - 1) * config.n_rows, config.d_table)
            self.widen = nn.Identity() if config.d_table == C else nn.Linear(config.d_table, C, bias=False)
        self.blocks = nn.ModuleList(ModernBlock(config.block_config()) for _ in range(config.n_layer))
        for block in self.blocks:
            block.attention.dropout = 0.0  # on a CPU torch would leave its fused kernel for it
        self.norm = RMSNorm(C)
        self.head = nn.Linear(C, config.vocab_size, bias=False)
        scaled_initialisation(self, max(config.n_layer, 1))
        nn.init.normal_(self.token_embedding.weight, 0, 0.5)
        if config.n_gram > 1:
            nn.init.zeros_(self.ngram_table.weight)
        nn.init.zeros_(self.head.weight)

    def embed(self, tokens):
        """Token vectors plus what the n-grams that end there add. tokens: (B, T). Returns (B, T, C)."""
        config = self.config
        if config.n_gram == 1:
            return self.token_embedding(tokens)
        rows = self.ngram_table(ngram_rows(tokens, config.n_gram, config.vocab_size, config.n_rows))  # (B, T, N-1, d_table)
        if self.training and config.ngram_dropout:
            kept = torch.rand(rows.shape[:3], device=rows.device) >= config.ngram_dropout
            rows = rows * (kept / (1 - config.ngram_dropout))[..., None]
        return self.token_embedding(tokens) + self.widen(rows.sum(dim=2))

    def forward(self, tokens):
        """tokens: (B, T) int64, of any length. Returns logits (B, T, V)."""
        x = self.embed(tokens)
        turn = rotation(torch.arange(tokens.shape[1], device=tokens.device), self.config.d_model // self.config.n_head)
        for block in self.blocks:
            x = block(x, causal=True, rotation=turn)
        return self.head(self.norm(x))

    def n_params(self):
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.parameters())


def speedrun_optimizers(model, lr, embedding_lr, table_lr=None, optimizer="muon"):
    """What trains the matrices of the blocks ("muon" or "adamw"), and AdamW for the rest; nothing decays.

    lr: of the blocks' matrices; table_lr: the n-gram tables', a row that few batches touch wants a high one; embedding_lr:
    all else's. "initial_lr" keeps a group's, for a schedule. AdamW alone takes nanoGPT's betas for small batches. ValueError
    for another optimizer, or for tables without a rate.
    """
    if optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer must be muon or adamw, not {optimizer}")
    if (table_lr is None) != (model.config.n_gram == 1):
        raise ValueError(f"table_lr goes with tables, and n_gram is {model.config.n_gram}: it must not be {table_lr}")
    matrices = [weight for weight in model.blocks.parameters() if weight.ndim == 2]
    tables = [] if table_lr is None else [model.ngram_table.weight]
    taken = {id(weight) for weight in (*matrices, *tables)}
    groups = [([weight for weight in model.parameters() if id(weight) not in taken], embedding_lr), (tables, table_lr)]
    if optimizer == "adamw":
        groups.append((matrices, lr))
    optimizers = [torch.optim.AdamW([{"params": weights, "lr": rate} for weights, rate in groups if weights],
                                    betas=(0.8, 0.95) if optimizer == "muon" else (0.9, 0.99), weight_decay=0.0, fused=True)]
    if matrices and optimizer == "muon":
        optimizers.append(Muon(matrices, lr=lr, weight_decay=0.0))
    for each in optimizers:
        for group in each.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def shuffled_windows(tokens, batch_size, block_size, generator):
    """Endless batches of windows that lie end to end, in random order: none comes again before all have come.

    Each pass cuts the text at other places, and its last batch may be smaller. tokens: (N,) with N > block_size; generator:
    torch.Generator, the only source of chance. Yields inputs and targets, each (B, T) int64.
    """
    n_starts = n_windows(tokens, block_size)
    while True:
        first = torch.randint(min(block_size, n_starts), (), generator=generator).item()
        starts = torch.arange(first, n_starts, block_size)
        for chosen in starts[torch.randperm(len(starts), generator=generator)].split(batch_size):
            yield windows_at(tokens, chosen, block_size)
