"""Lesson 3.4 - grouped-query attention: H query heads share H_kv heads of keys and values.

    query head h looks at key-value head  h // (H / H_kv)                        (Ainslie et al. 2023, "GQA", section 2.2)

H_kv = H is multi-head attention (lesson 1.4), H_kv = 1 is multi-query. With long texts or many rows a model that writes
reads more cache than weights; sharing makes the cache H / H_kv times smaller. The rest is lesson 1.4 with rotary positions
(3.2), a mask (3.5) and a cache (3.4, 3.6).
"""

import torch
import torch.nn.functional as F
from torch import nn

from part_0.device import fused_attention
from part_1.multi_head import merge_heads
from part_1.single_head import scaled_dot_product_attention
from part_3.rms_norm import RMSNorm
from part_3.rope import rotate

SHORT = 512  # tokens up to which `short_attention` is the faster one
PIECE = 2**20  # weights held at a time by `short_attention`: 2 MiB in bf16, which stay in the processor's cache


def short_attention(query, key, value, mask=None, dropout=0.0):
    """Attention that computes its T x T weights in pieces of a few rows of the batch; for training in bf16 on a CPU.

    Causal without a mask. mask: bool (T, T) or (B, 1, T, T), True = may look, at least one key for each query.

    Up to some hundred tokens this is about twice as fast as torch's fused kernel, which runs in fp32 there (lesson 0.2): all
    products are bf16. Query heads that share a key head are rows of one product. All weights are kept for the backward pass:
    memory grows with T^2. Arguments and result as of `grouped_attention`.
    """
    B, H, T, D = query.shape
    H_kv = key.shape[1]
    visible = torch.ones(T, T, dtype=torch.bool, device=query.device).tril() if mask is None else mask
    hidden = torch.zeros(visible.shape, dtype=query.dtype, device=query.device).masked_fill(~visible, float("-inf"))
    hidden = hidden.expand(B, *hidden.shape[-3:]) if hidden.ndim == 4 else hidden.expand(B, 1, T, T)
    pieces = []
    for q, k, v, bias in zip(*(part.split(max(1, PIECE // (H * T * T))) for part in (query, key, value, hidden))):
        q = (q * D ** -0.5).reshape(-1, H // H_kv * T, D)  # (b, H, T, D) -> (b H_kv, H/H_kv T, D)
        scores = torch.bmm(q, k.reshape(-1, T, D).mT).view(-1, H, T, T) + bias
        weights = F.dropout(scores.softmax(dim=-1), dropout) if dropout else scores.softmax(dim=-1)
        heads = torch.bmm(weights.view(-1, H // H_kv * T, T), v.reshape(-1, T, D))
        pieces.append(heads.view(-1, H, T, D))
    return torch.cat(pieces)


def grouped_attention(query, key, value, mask=None, causal=False, dropout=0.0):
    """Attention of H query heads over H_kv key-value heads, which are never repeated in memory.

    query: (B, H, T, D); key, value: (B, H_kv, S, D), H_kv dividing H; mask: bool, broadcastable to (B, 1, T, S), True = may
    look; causal: without a mask, query i sees keys 0 ... i. Returns (B, H, T, D).
    """
    B, H, T, D = query.shape
    H_kv = key.shape[1]
    if T == 1 and H_kv < H and not causal:
        # One token: the queries of a group can be treated as that many tokens, all seeing the same keys.
        groups = query.view(B, H_kv, H // H_kv, D)
        return fused_attention(groups, key, value, attn_mask=mask, dropout_p=dropout).reshape(B, H, T, D)
    if ((mask is not None or causal) and T == key.shape[2] and T <= SHORT and torch.is_grad_enabled()
            and query.device.type == "cpu" and query.dtype == torch.bfloat16):
        return short_attention(query, key, value, mask, dropout)
    return fused_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal and mask is None,
                           enable_gqa=H_kv < H)


class Attention(nn.Module):
    """Self-attention with H query heads and H_kv key-value heads of width D = C/H."""

    def __init__(self, d_model, n_head, n_kv_head=None, bias=False, qk_norm=False, dropout=0.0, norm_eps=1e-5):
        """n_kv_head: H_kv, n_head when None; qk_norm: RMSNorm on each head's query and key, which bounds the scores
        (after Henry et al. 2020); dropout: probability for the attention weights; norm_eps: QK-norm's eps."""
        super().__init__()
        n_kv_head = n_head if n_kv_head is None else n_kv_head
        if d_model % n_head:
            raise ValueError(f"d_model {d_model} must be divisible by n_head {n_head}")
        if n_kv_head < 1 or n_head % n_kv_head:
            raise ValueError(f"n_head {n_head} must be divisible by n_kv_head {n_kv_head}")
        self.n_head, self.n_kv_head, self.d_head = n_head, n_kv_head, d_model // n_head
        self.dropout = dropout
        self.qkv = nn.Linear(d_model, (n_head + 2 * n_kv_head) * self.d_head, bias=bias)
        self.query_norm, self.key_norm = (RMSNorm(self.d_head, norm_eps) if qk_norm else None for _ in range(2))
        self.project = nn.Linear(d_model, d_model, bias=bias)

    def queries_keys_values(self, x):
        """x: (B, T, C). Returns query (B, H, T, D), key and value (B, H_kv, T, D), normed but not yet rotated."""
        B, T, _ = x.shape
        heads = self.qkv(x).view(B, T, -1, self.d_head).transpose(1, 2)  # (B, H + 2 H_kv, T, D)
        query, key, value = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=1)
        if self.query_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return query, key, value

    def forward(self, x, mask=None, causal=False, rotation=None, key_rotation=None, cache=None, layer=0):
        """x: (B, T, C). Returns (B, T, C).

        mask: bool, broadcastable to (B, 1, T, S), True = may look; causal: without a mask, a token sees itself and those
        before it; rotation: that of the tokens' positions, None for no rotary positions; cache, layer: keys and values are
        stored in that layer of the cache, and what it returns is attended to; key_rotation: that of the cached keys, for
        a cache that stores them un-rotated.
        """
        query, key, value = self.queries_keys_values(x)
        if rotation is not None:
            query = rotate(query, rotation)
            if key_rotation is None:
                key = rotate(key, rotation)
        if cache is not None:
            key, value = cache.update(layer, key, value)
        if key_rotation is not None:
            key = rotate(key, key_rotation)
        heads = grouped_attention(query, key, value, mask, causal, self.dropout if self.training else 0.0)
        return self.project(merge_heads(heads))  # (B, H, T, D) -> (B, T, C)

    def attention_weights(self, x, mask, rotation=None):
        """The weights (B, H, T, T) that `forward` uses without ever holding them; for looking at."""
        query, key, value = self.queries_keys_values(x)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        key, value = (part.repeat_interleave(self.n_head // self.n_kv_head, dim=1) for part in (key, value))
        return scaled_dot_product_attention(query, key, value, mask)[1]
