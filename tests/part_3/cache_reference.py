"""A second implementation of a model that reads with a cache, for the tests: one text, token by token, in fp64, with a list
of keys that are never rotated; and what the cache tests share."""

import functools
import itertools

import torch
from torch import nn

from part_3.modern_gpt import ModernGPT, ModernGPTConfig

TOLERANCE = 1e-4
N_NEW = 12
PROMPTS = [torch.randint(40, (n,), generator=torch.Generator().manual_seed(n)) for n in (21, 13, 5, 1)]


class Reader:
    """Reads one text and gives the logits after each token. From the model it takes only its weights and its config.

    A rotated query's product with a rotated key is Re(q conj(k) e^(i distance w)), so each (query, key) pair is turned by
    its own distance. streaming: the distance to a sink stops growing at window + sinks - 1 - k.
    """

    def __init__(self, model, streaming=False):
        self.config, self.streaming, self.n_read = model.config, streaming, 0
        self.weights = {name: weight.double() for name, weight in model.state_dict().items()}
        self.history = [([], []) for _ in model.blocks]  # of each layer, keys and values

    def normed(self, x, name):
        return x / (x.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt() * self.weights[name + ".weight"]

    def points(self, heads):
        """(heads, D) -> (heads, D/2): each pair of columns as a complex number."""
        if self.config.rope_pairing == "half":
            return torch.complex(*heads.chunk(2, dim=-1))
        return torch.complex(heads[:, 0::2], heads[:, 1::2])

    def read(self, token):
        c, w, q = self.config, self.weights, self.n_read
        self.n_read += 1
        D = c.d_model // c.n_head
        seen = [k for k in range(q + 1) if c.window is None or q - k < c.window or k < c.sinks]
        distances = [(min(q, c.window + c.sinks - 1) if self.streaming and k < c.sinks else q) - k for k in seen]
        speeds = torch.tensor([c.rope_base ** (-2 * i / D) / c.rope_scale for i in range(D // 2)], dtype=torch.float64)
        angles = torch.tensor(distances).double()[:, None] * speeds
        turn = torch.polar(torch.ones_like(angles), angles)
        x = w["token_embedding.weight"][token]
        for layer, (keys, values) in enumerate(self.history):
            at = f"blocks.{layer}."
            heads = (w[at + "attention.qkv.weight"] @ self.normed(x, at + "norm_1")).view(-1, D)
            query, key, value = heads.split((c.n_head, c.n_kv_head, c.n_kv_head))
            if c.qk_norm:
                query = self.normed(query, at + "attention.query_norm")
                key = self.normed(key, at + "attention.key_norm")
            keys.append(self.points(key))
            values.append(value)
            mixed = []
            for h, point in enumerate(self.points(query)):
                group = h // (c.n_head // c.n_kv_head)
                scores = [(point * keys[k][group].conj() * turn[i]).real.sum() / D**0.5 for i, k in enumerate(seen)]
                mixed.append(torch.stack(scores).softmax(0) @ torch.stack([values[k][group] for k in seen]))
            x = x + w[at + "attention.project.weight"] @ torch.cat(mixed)
            gate, up = (w[at + "feed_forward.expand.weight"] @ self.normed(x, at + "norm_2")).chunk(2)
            x = x + w[at + "feed_forward.contract.weight"] @ (gate / (1 + (-gate).exp()) * up)
        return w["head.weight"] @ self.normed(x, "norm")

    def read_all(self, tokens):
        """tokens: (T,). Returns (T, V)."""
        return torch.stack([self.read(int(token)) for token in tokens])

    def continue_greedily(self, tokens, n_new):
        logits, new = self.read_all(tokens)[-1], []
        for _ in range(n_new):
            new.append(int(logits.argmax()))
            logits = self.read(new[-1])
        return new


@functools.cache
def make_model(n_layer=2, seed=0, **options):
    """A small model with weights so large that attention is far from uniform."""
    torch.manual_seed(seed)
    model = ModernGPT(ModernGPTConfig(**{**dict(vocab_size=40, block_size=64, n_layer=n_layer, n_head=4, d_model=24),
                                         **options})).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, 0, 0.3)
    return model


def pieces(T, sizes):
    """(start, end) of consecutive passes over T tokens whose lengths go round in `sizes`."""
    end = 0
    for size in itertools.cycle(sizes):
        start, end = end, min(end + size, T)
        yield start, end
        if end == T:
            return


def read_in_passes(model, tokens, positions, kind, sizes, cache=None):
    """Logits (B, T, V) of a text given to the model a piece at a time; "none": everything before it given again."""
    T, parts = tokens.shape[1], []
    if kind != "none" and cache is None:
        cache = model.new_cache(kind, len(tokens), T)
    for start, end in pieces(T, sizes):
        first = start if cache else 0
        where = None if positions is None else positions[:, first:end]
        parts.append(model(tokens[:, first:end], where, cache)[:, start - first:])
    return torch.cat(parts, dim=1)


def error(logits, expected):
    return (logits.double() - expected).abs().max().item()


def contents(cache):
    return (*cache.keys, *cache.values)
