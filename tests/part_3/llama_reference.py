"""A Llama written from its papers and from the names in Hugging Face's state dict, with nothing of this repository in it.

Rotary positions are products of complex numbers, shared keys are repeated in memory, the softmax is spelt out.
"""

import math

import torch
from torch import nn


def turn(x, positions, base=10000.0, pairing="half"):
    """RoPE in complex numbers: pair (a, b) is a + ib, and position t multiplies pair i by exp(i t base^(-2i/D)).

    x: (B, H, T, D); positions: (T,). Computed in fp64, returned in fp32.
    """
    D = x.shape[-1]
    x = x.double()
    a, b = x.chunk(2, dim=-1) if pairing == "half" else (x[..., 0::2], x[..., 1::2])
    angles = positions.double()[:, None] * torch.tensor([base ** (-2 * i / D) for i in range(D // 2)], dtype=torch.double)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
    if pairing == "half":
        return torch.cat((turned.real, turned.imag), dim=-1).float()
    return torch.view_as_real(turned).reshape(x.shape).float()


def explicit_attention(query, key, value, mask=None):
    """softmax(q k^T / sqrt(D)) v with the keys and values of a group repeated; mask: True = may look, to (B, H, T, S)."""
    copies = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(copies, dim=1), value.repeat_interleave(copies, dim=1)
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) / math.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + torch.zeros(mask.shape).masked_fill(~mask, -math.inf)
    weights = torch.exp(scores - scores.amax(dim=-1, keepdim=True))
    return torch.einsum("bhts,bhsd->bhtd", weights / weights.sum(dim=-1, keepdim=True), value)


class SelfAttention(nn.Module):
    def __init__(self, d_model, n_head, n_kv_head, base):
        super().__init__()
        self.d_head, self.base = d_model // n_head, base
        self.q_proj = nn.Linear(d_model, n_head * self.d_head, bias=False)
        self.k_proj = nn.Linear(d_model, n_kv_head * self.d_head, bias=False)
        self.v_proj = nn.Linear(d_model, n_kv_head * self.d_head, bias=False)
        self.o_proj = nn.Linear(n_head * self.d_head, d_model, bias=False)

    def forward(self, x):
        B, T, C = x.shape
        query, key, value = (project(x).reshape(B, T, -1, self.d_head).permute(0, 2, 1, 3)
                             for project in (self.q_proj, self.k_proj, self.v_proj))
        query, key = (turn(part, torch.arange(T), self.base) for part in (query, key))
        heads = explicit_attention(query, key, value, torch.ones(T, T).tril().bool())
        return self.o_proj(heads.permute(0, 2, 1, 3).reshape(B, T, C))


class MLP(nn.Module):
    def __init__(self, d_model, d_hidden):
        super().__init__()
        self.gate_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.up_proj = nn.Linear(d_model, d_hidden, bias=False)
        self.down_proj = nn.Linear(d_hidden, d_model, bias=False)

    def forward(self, x):
        gate = self.gate_proj(x)
        return self.down_proj(gate * torch.sigmoid(gate) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, d_model, n_head, n_kv_head, d_hidden, base, eps):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(d_model, eps=eps)
        self.self_attn = SelfAttention(d_model, n_head, n_kv_head, base)
        self.post_attention_layernorm = nn.RMSNorm(d_model, eps=eps)
        self.mlp = MLP(d_model, d_hidden)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, vocab_size, n_layer, d_model, eps, *sizes):
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(DecoderLayer(d_model, *sizes, eps) for _ in range(n_layer))
        self.norm = nn.RMSNorm(d_model, eps=eps)

    def forward(self, tokens):
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class LlamaReference(nn.Module):
    """tokens (B, T) to logits (B, T, V); `tensors()` and `load` speak the names of Hugging Face's files."""

    def __init__(self, vocab_size, n_layer, n_head, n_kv_head, d_model, d_hidden, base=10000.0, eps=1e-5, tied=False):
        super().__init__()
        self.tied = tied
        self.model = Decoder(vocab_size, n_layer, d_model, eps, n_head, n_kv_head, d_hidden, base)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, tokens):
        return self.lm_head(self.model(tokens))

    def randomise(self, std=0.15):
        for parameter in self.parameters():
            nn.init.normal_(parameter, 1.0 if parameter.ndim == 1 else 0.0, std)
        return self

    def tensors(self):
        return {name: tensor.clone() for name, tensor in self.state_dict().items()
                if not (self.tied and name == "lm_head.weight")}

    def load(self, tensors):
        self.load_state_dict(tensors | ({"lm_head.weight": tensors["model.embed_tokens.weight"]} if self.tied else {}))
        return self
