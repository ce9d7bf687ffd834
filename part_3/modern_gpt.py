"""Lesson 3.4 - ModernGPT: Part 2's GPT with each piece replaced by what today's open models use (Llama, Mistral, Qwen).

    x = E[tokens];   x <- x + Attention(RMSNorm(x));   x <- x + SwiGLU(RMSNorm(x));   logits = RMSNorm(x) W

                  Part 2's GPT           ModernGPT                                          flag
    norm          LayerNorm              RMSNorm (3.1)                                      norm
    positions     learned, added         rotary, inside attention (3.2)                     positions, rope_*
    feed-forward  GELU                   SwiGLU (3.3)                                       mlp
    attention     H key-value heads      H_kv of them (3.4), window and sinks (3.5)         n_kv_head, window, sinks
    biases        yes                    no                                                 bias
    QK-norm       no                     no; RMSNorm on each head's query and key           qk_norm
    output        a matrix of its own    a matrix of its own, or the embedding              tie_embeddings

Every piece can be switched back to its ancestor; with all of them switched back it is Part 2's GPT, weight for weight.
"""

import copy
from dataclasses import replace

import torch
from torch import nn

from part_1.feed_forward import FeedForward
from part_1.layer_norm import LayerNorm
from part_1.positional_encoding import LearnedPositionalEncoding, SinusoidalPositionalEncoding
from part_2.checkpoint import load_model as load_part_2_model
from part_2.gpt import scaled_initialisation
from part_3.attention import Attention
from part_3.attention_mask import attention_mask
from part_3.kv_cache import StaticCache
from part_3.modern_config import ModernGPTConfig
from part_3.rms_norm import RMSNorm
from part_3.rolling_cache import RollingCache, StreamingCache
from part_3.rope import rotation
from part_3.swiglu import SwiGLU

CACHES = {"static": StaticCache, "rolling": RollingCache, "streaming": StreamingCache}


class ModernBlock(nn.Module):
    """The pre-norm block of lesson 1.7 with the pieces that the config names: (B, T, C) in, (B, T, C) out."""

    def __init__(self, config, feed_forward=None):
        """feed_forward: the module that stands after the second norm; the config's own when None."""
        super().__init__()
        C, bias = config.d_model, config.bias
        self.norm_1 = make_norm(config)
        self.attention = Attention(C, config.n_head, config.n_kv_head, bias, config.qk_norm, config.dropout,
                                   config.norm_eps)
        self.norm_2 = make_norm(config)
        self.feed_forward = make_feed_forward(config) if feed_forward is None else feed_forward
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()

    def forward(self, x, **options):
        """x: (B, T, C); options: those of `Attention.forward`. Returns (B, T, C)."""
        x = x + self.dropout(self.attention(self.norm_1(x), **options))
        return x + self.dropout(self.feed_forward(self.norm_2(x)))


def make_feed_forward(config, layer=0):
    """The feed-forward layer that the config names, the same in every block."""
    return (SwiGLU if config.mlp == "swiglu" else FeedForward)(config.d_model, config.d_hidden, bias=config.bias)


def make_norm(config):
    """The norm that the config names, of width C."""
    if config.norm == "rmsnorm":
        return RMSNorm(config.d_model, config.norm_eps)
    return LayerNorm(config.d_model, bias=config.bias, eps=config.norm_eps)


class ModernGPT(nn.Module):
    """A decoder-only language model from the pieces of Part 3. The names of its weights are those of Part 2's GPT."""

    def __init__(self, config, feed_forward=make_feed_forward):
        """feed_forward: called with the config and the number of a block, gives its feed-forward layer."""
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.positions in ("learned", "sinusoidal"):
            encoding = LearnedPositionalEncoding if config.positions == "learned" else SinusoidalPositionalEncoding
            self.position_embedding = encoding(config.block_size, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(ModernBlock(config, feed_forward(config, layer)) for layer in range(config.n_layer))
        self.norm = make_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        scaled_initialisation(self, config.n_layer)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight

    def embed(self, tokens, positions):
        """Token vectors (B, T, C), with position vectors added where the model has such. positions: (T,) or (B, T)."""
        x = self.token_embedding(tokens)
        if self.config.positions in ("learned", "sinusoidal"):
            x = x + self.position_embedding(positions.clamp(min=0))  # padding may take any: no token looks at it
        return self.dropout(x)

    def rotation(self, positions):
        """The rotary rotation of these positions, (T,) or (B, T); None for a model without rotary positions."""
        config = self.config
        if config.positions != "rope":
            return None
        return rotation(positions, config.d_head, config.rope_base, config.rope_scale, config.rope_pairing)

    def hidden_states(self, tokens, positions=None, cache=None, segments=None, causal=True):
        """The last layer's output after the final norm: what the head reads.

        tokens: (B, T) int64. positions: (B, T) int64, -1 for padding; None for 0 ... T-1, or for going on where the cache
        stands. cache: one made by `new_cache`; its tokens are seen too, and these are added to it. segments: (B, T) numbers
        of texts that share a row and must not see each other, with positions from 0 in each; not with a cache. causal:
        False for an encoder, whose tokens also see those after them (lesson 7.2); not with a cache. Returns (B, T, C); rows
        of padding hold nothing of use. ValueError for tokens that do not fit into the cache or a table of positions.
        """
        B, T = tokens.shape
        config = self.config
        if segments is not None and (positions is None or cache is not None):
            raise ValueError("segments need positions, and no cache")
        if not causal and cache is not None:
            raise ValueError("a cache needs causal attention: what it holds must not depend on later tokens")
        if cache is not None and not cache.takes(T):  # what the cache shows changes with every token
            parts = (None,) * T if positions is None else positions.split(1, dim=1)
            return torch.cat([self.hidden_states(*step, cache) for step in zip(tokens.split(1, dim=1), parts)], dim=1)
        longest = T if cache is None else cache.length + T
        if config.positions in ("learned", "sinusoidal") and longest > config.block_size:
            raise ValueError(f"{longest} tokens do not fit into a context of {config.block_size}")
        if cache is not None:
            positions, key_positions = cache.begin(T, positions)
        elif positions is None:
            positions = torch.arange(T, device=tokens.device)
            is_plain = config.window is None or T <= config.window + config.sinks if causal else config.window is None
            key_positions = None if is_plain else positions
        else:
            key_positions = positions

        # One mask and one rotation serve all layers. No mask is needed where nothing but the future must be hidden.
        mask = None
        if key_positions is not None:
            mask = attention_mask(positions, key_positions, config.window, config.sinks, segments, causal)
            mask = mask if mask.ndim == 2 else mask[:, None]  # (B, T, S) -> (B, 1, T, S)
        options = dict(mask=mask, causal=causal and mask is None and T > 1, rotation=self.rotation(positions), cache=cache)
        if cache is not None and not cache.keys_rotated:
            options["key_rotation"] = self.rotation(cache.key_positions)
        x = self.embed(tokens, positions)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer=layer, **options)
        return self.norm(x)

    def forward(self, tokens, positions=None, cache=None, segments=None):
        """Arguments as of `hidden_states`. Returns logits (B, T, V)."""
        return self.head(self.hidden_states(tokens, positions, cache, segments))

    def new_cache(self, kind, batch_size, capacity=None):
        """An empty cache of a kind of `CACHES`. capacity: the most tokens a row; the ring of the other two needs none."""
        if kind not in CACHES:
            raise ValueError(f"cache must be one of {', '.join(CACHES)}, not {kind}")
        if kind == "static" and capacity is None:
            raise ValueError("a static cache needs a capacity: the most tokens a row")
        if kind == "streaming" and self.config.positions != "rope":
            raise ValueError("positions in the cache need rotary positions")
        weight = self.head.weight
        device = weight.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        return CACHES[kind](self.config, batch_size, capacity, weight.device, dtype)

    def n_params(self):
        """Number of weights; a tied matrix counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def reread(model, **changes):
    """The same weights with another window, sinks, rope_base or rope_scale; nothing is copied but the config.

    ValueError for any other change: the config would say what the weights are not.
    """
    if unknown := set(changes) - {"window", "sinks", "rope_base", "rope_scale"}:
        raise ValueError(f"{', '.join(sorted(unknown))} cannot be changed in a finished model")
    other = copy.copy(model)
    other.config = replace(model.config, **changes)
    return other


@torch.inference_mode()
def attention_maps(model, tokens):
    """The attention weights of every layer in one plain pass over tokens (B, T): a list of (B, H, T, T); for looking at.

    The model is left in the mode it was in.
    """
    was_training = model.training
    model.eval()  # no dropout: it would also draw random numbers
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    mask = attention_mask(positions, positions, model.config.window, model.config.sinks)
    maps = []
    hooks = [block.attention.register_forward_pre_hook(
        lambda module, inputs: maps.append(module.attention_weights(inputs[0], mask, model.rotation(positions))))
        for block in model.blocks]
    model(tokens)
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    return maps


def load_model(path, device="cpu"):
    """Rebuild model (in eval mode) and tokenizer from a checkpoint of part_3/train.py. Returns (model, tokenizer, state)."""
    return load_part_2_model(path, device, lambda sizes: ModernGPT(ModernGPTConfig(**sizes)), "part_3/train.py")
