"""Lesson 1.1 - absolute positions: attention sees a set, so each token must carry where it stands.

    PE(t, 2i) = sin(t / base^(2i/C))        PE(t, 2i+1) = cos(t / base^(2i/C))

(Vaswani et al. 2017, "Attention Is All You Need", section 3.5.) A pair of columns is a clock hand that turns with t, the
first pair fastest. Because sin a sin b + cos a cos b = cos(a - b), the dot product of two rows depends on their distance
alone. The alternative is a table that is learned (Radford et al. 2018, GPT): free in form, but without a row for a
position that was never trained.
"""

import torch
from torch import nn


def sinusoidal_table(n_positions, d_model, base=10000.0):
    """Rows 0 ... n_positions-1 of the sinusoidal encoding.

    d_model: width C, even, because the columns come in (sin, cos) pairs. Returns (T, C), fp32. ValueError for an odd width.
    """
    if d_model % 2:
        raise ValueError(f"d_model must be even (its columns are sin/cos pairs), not {d_model}")
    # Angles in float64: in fp32 an angle of thousands of radians keeps only four decimals.
    positions = torch.arange(n_positions, dtype=torch.float64)
    frequencies = base ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)  # (C/2,)
    angles = positions[:, None] * frequencies[None, :]  # (T, C/2)
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(-2).float()  # (T, C/2, 2) -> (T, C)


class SinusoidalPositionalEncoding(nn.Module):
    """The fixed table as a module: nothing to learn, nothing to save."""

    def __init__(self, n_positions, d_model, base=10000.0):
        super().__init__()
        self.register_buffer("table", sinusoidal_table(n_positions, d_model, base), persistent=False)

    def forward(self, positions):
        """positions: (...,) int64, each below n_positions. Returns (..., C)."""
        return self.table[positions]


class LearnedPositionalEncoding(nn.Embedding):
    """One learned row per position: torch's embedding table under the name of what it is used for.

    positions: (...,) int64, each below n_positions. Returns (..., C).
    """
