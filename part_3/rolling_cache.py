"""Lesson 3.6 - the rolling buffer: under a sliding window only so many keys can be seen, so only so many are kept.

    place(p) = p                               for a sink, p < sinks
    place(p) = sinks + (p - sinks) mod window  for any other: it overwrites the token that just left the window

(Jiang et al. 2023, "Mistral 7B", section 2, with the sinks of Xiao et al. 2024; counted behind place 0, padding's.) Memory
is constant and nothing is moved.

    RollingCache     keys are stored rotated by their absolute position: exactly the windowed full pass
    StreamingCache   keys are stored un-rotated, and rotated by their position *in the cache* whenever they are read (Xiao et
                     al. 2024, section 3.2): with sinks + window within the trained length, no angle exceeds training's
"""

import torch

from part_3.kv_cache import StaticCache


class RollingCache(StaticCache):
    """Sinks in front and a ring behind them: sinks + window places, for any text. `capacity` is ignored."""

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

    While nothing has been dropped, position in the cache and position in the text are the same. From then on the sinks keep
    their numbers, the ring's tokens are numbered on from there by age, and the query has the last number, which is
    sinks + window - 1: no key is ever further away than that, however far the text has run.
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
