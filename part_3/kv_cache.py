"""Lessons 3.4 and 3.6 - key-value caches: what a token showed to later ones is computed once and kept.

Generating token t without a cache computes t tokens again; with one, a single token looks at t stored keys and values.

    StaticCache      one place per position, allocated once: position p lies in place p + 1
    RollingCache     sinks and a ring of `window` places: constant memory, a new token overwrites the one that just left the
                     window. Keys are stored rotated by their absolute position: equal to the windowed full pass.
    StreamingCache   the same ring with un-rotated keys; a key is rotated by its position *in the cache* whenever it is read
                     (Xiao et al. 2024, section 3.2), so no angle ever exceeds those of training.

Place 0 is where padding goes: it is written like any other, and no real query sees it. So prompts of unequal length need
no special case, and rows hold their own positions.

A cache is used in two calls. The model calls `begin` once per forward pass; each layer then calls `update`, which stores
the new keys and values and returns those to attend to. Nothing is concatenated as the text grows.
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
        shape = (batch_size, config.n_kv_head, 1 + self.n_places(), config.d_head)
        self.keys, self.values = ([torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
                                  for _ in range(2))
        self.device = self.keys[0].device
        self.length = 0  # tokens seen by each row, padding included
        self.row_lengths = None  # (B,) once rows differ: tokens seen without padding

    def n_places(self):
        """Places for real tokens, a row."""
        return self.capacity

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

        positions: (B, T) int64, -1 for padding, or None to continue each row where it stands. Returns the queries'
        positions, (T,) or (B, T), and those of the keys that `update` will return, (S,) or (B, S); or None instead of the
        latter where no mask is needed but the causal one among the new tokens. ValueError when there is no room.
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


class RollingCache(StaticCache):
    """Sinks in front and a ring behind them; `capacity` is not a limit here, memory stays at sinks + window places."""

    def __init__(self, config, batch_size, capacity=None, device=None, dtype=torch.float32):
        if config.window is None:
            raise ValueError("a rolling cache needs a model with a window")
        super().__init__(config, batch_size, config.window + config.sinks, device, dtype)
        # Which position lies in which place, -1 for none; place 0 is padding's.
        self.positions = torch.full((batch_size, 1 + self.capacity), -1, device=self.device)

    def place(self, positions):
        """Where a position is stored: a sink in a place of its own, the others in turn round the ring; padding in 0."""
        ring = self.sinks + (positions - self.sinks) % self.window
        return 1 + torch.where(positions < self.sinks, positions, ring)

    def begin(self, n_tokens, positions=None):
        """As `StaticCache.begin`, but there is always room."""
        start = self.length
        positions = self.take_positions(n_tokens, positions)
        self.read = slice(1, 1 + min(self.length, self.capacity))
        # In a longer pass a later token may overwrite what an earlier one must still see: then the new tokens are looked at
        # beside the old contents, and stored afterwards.
        self.beside = n_tokens > 1 and self.length > self.capacity
        old_positions = self.positions.clone() if self.beside else None
        last = positions.amax(dim=-1, keepdim=True)
        stays = (positions < self.sinks) | (positions > last - self.window)  # of several for one place, the last
        self.write = self.place(positions).where(stays, 0).expand(len(self.positions), -1)
        self.positions.scatter_(1, self.write, positions.where(stays, -1).expand_as(self.write))
        if self.beside:
            return positions, torch.cat((old_positions, positions.expand_as(self.write)), dim=1)
        if positions.ndim == 1 and (start == 0 or n_tokens == 1):
            return positions, None  # all that lies in the ring is visible
        self.read = slice(0, self.read.stop)
        return positions, self.positions[:, self.read]

    def update(self, layer, key, value):
        """As `StaticCache.update`."""
        if not self.beside:
            return super().update(layer, key, value)
        old_key, old_value = self.keys[layer], self.values[layer]
        result = torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)
        self.store(layer, key, value)
        return result

    def select(self, rows):
        """As `StaticCache.select`."""
        super().select(rows)
        self.positions = self.positions[rows]


class StreamingCache(RollingCache):
    """A rolling cache whose keys are stored un-rotated and rotated by their place in line when read.

    While nothing has been dropped, position in cache and position in the text are the same. From then on the sinks keep
    their numbers, the ring's tokens are numbered on from there by age, and the query has the last number: to it a sink
    seems no further away than the window's length, however far the text has run.
    """

    keys_rotated = False

    def takes(self, n_tokens):
        """Whether a pass of that many tokens is possible. Not past the capacity: the numbers change with every token."""
        return n_tokens == 1 or self.length + n_tokens <= self.capacity

    def begin(self, n_tokens, positions=None):
        """As `RollingCache.begin`, with positions in the cache instead of those in the text."""
        if not self.takes(n_tokens):
            raise ValueError(f"past {self.capacity} tokens a streaming cache takes one token at a time, not {n_tokens}")
        positions, key_positions = super().begin(n_tokens, positions)
        dropped = (positions - self.capacity + 1).clamp(min=0)  # tokens that have left the ring
        stored = self.positions[0 if positions.ndim == 1 else slice(None), self.read]
        self.key_positions = torch.where(stored < self.sinks, stored, stored - dropped[..., -1:])
        return positions - dropped, None if key_positions is None else self.key_positions
