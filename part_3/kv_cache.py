"""Lesson 3.4 - the key-value cache: each token's keys and values are computed once and kept.

Generating token t without a cache computes t tokens again; with one, a single token looks at t stored keys and values.
Position p of a row lies in place p + 1. Place 0 is where padding goes: it is written like any other, and no real query sees
it. So prompts of unequal length need no special case, and rows hold their own positions.

A cache is used in two calls. The model calls `begin` once per forward pass; each layer then calls `update`, which stores
the new keys and values and returns those to attend to. Room is allocated once; nothing is concatenated as the text grows.
Lesson 3.6 (rolling_cache.py) keeps both calls and changes where a position is stored.
"""

import torch


class StaticCache:
    """Room for `capacity` tokens a row, allocated at once.

    config: a ModernGPTConfig; batch_size: B; capacity: the most tokens, padding included, that will be given to it;
    dtype: of keys and values.
    """

    keys_rotated = True  # before they are stored

    def __init__(self, config, batch_size, capacity, device=None, dtype=torch.float32):
        if batch_size < 1 or capacity < 1:
            raise ValueError(f"a cache needs batch_size and capacity of at least 1, not {batch_size} and {capacity}")
        self.window, self.sinks, self.capacity = config.window, config.sinks, capacity
        shape = (batch_size, config.n_kv_head, 1 + capacity, config.d_head)
        self.keys, self.values = ([torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
                                  for _ in range(2))
        self.device = self.keys[0].device
        self.length = 0  # tokens seen by each row, padding included
        self.row_lengths = None  # (B,) once rows differ: tokens seen without padding

    @property
    def n_bytes(self):
        """Memory held by keys and values."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def takes(self, n_tokens):
        """Whether a single pass of that many tokens is possible."""
        return True

    def take_positions(self, n_tokens, positions):
        """Positions of the next tokens, (T,) while all rows are alike, else (B, T); counts them as seen."""
        start, self.length = self.length, self.length + n_tokens
        if positions is None and self.row_lengths is None:
            return torch.arange(start, self.length, device=self.device)
        if self.row_lengths is None:
            self.row_lengths = torch.full((len(self.keys[0]),), start, device=self.device)
        if positions is None:
            positions = self.row_lengths[:, None] + torch.arange(n_tokens, device=self.device)
        self.row_lengths = torch.maximum(self.row_lengths, positions.amax(dim=1) + 1)
        return positions

    def begin(self, n_tokens, positions=None):
        """Make ready for a forward pass of `n_tokens` tokens a row.

        positions: (B, T) int64, below the capacity, -1 for padding; or None to continue each row where it stands. Returns
        the queries' positions, (T,) or (B, T), and those of the keys that `update` will return, (S,) or (B, S); or None
        instead of the latter where no mask is needed but the causal one among the new tokens. ValueError when there is no
        room.
        """
        if self.length + n_tokens > self.capacity:
            raise ValueError(f"{self.length + n_tokens} tokens do not fit into a cache of {self.capacity}")
        start = self.length
        positions = self.take_positions(n_tokens, positions)
        if positions.ndim == 1:
            self.write, self.read = slice(1 + start, 1 + self.length), slice(1, 1 + self.length)
            within = self.window is None or self.length <= self.window + self.sinks
            bare = within and (start == 0 or n_tokens == 1)
            return positions, None if bare else torch.arange(self.length, device=self.device)
        self.write, self.read = positions + 1, slice(0, 1 + self.length)
        return positions, torch.arange(-1, self.length, device=self.device)

    def store(self, layer, key, value):
        """Put the new keys and values where `begin` said."""
        for buffer, new in ((self.keys[layer], key), (self.values[layer], value)):
            if isinstance(self.write, slice):
                buffer[:, :, self.write] = new
            else:  # (B, T) -> (B, H_kv, T, D): every row has its own places
                buffer.scatter_(2, self.write[:, None, :, None].expand_as(new), new.to(buffer.dtype))

    def update(self, layer, key, value):
        """Store the new tokens' keys and values; each (B, H_kv, T, D). Returns all to attend to, (B, H_kv, S, D) each."""
        self.store(layer, key, value)
        return self.keys[layer][:, :, self.read], self.values[layer][:, :, self.read]

    def select(self, rows):
        """Keep only these rows, in this order; a row may be taken several times, which shares one prompt. rows: int64."""
        self.keys, self.values = ([buffer[rows] for buffer in buffers] for buffers in (self.keys, self.values))
        if self.row_lengths is not None:
            self.row_lengths = self.row_lengths[rows]
