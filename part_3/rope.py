"""Lesson 3.2 - rotary positions: turn query and key by an angle that grows with the position.

Columns are paired; pair i is a point (a, b) of a plane, and at position t it is turned by the angle t w_i:

    a' = a cos(t w_i) - b sin(t w_i)        w_i = base^(-2i/D),   i = 0 ... D/2 - 1
    b' = a sin(t w_i) + b cos(t w_i)        (Su et al. 2021, "RoFormer", section 3.2.2)

Turning query m and key n leaves their dot product a function of m - n alone: <R(m) q, R(n) k> = <R(m - n) q, k>, because a
rotation's transpose turns back. So a score knows the distance, and nothing is added to the token's vector.

Which columns make a pair is a convention, and both are in use: "half" pairs column i with i + D/2 (GPT-NeoX, Llama in
Hugging Face's layout; the default here), "interleaved" pairs 2i with 2i + 1 (the paper, Meta's Llama files). They differ by
the order of the rows of W_q and W_k, which `half_to_interleaved` and its inverse convert.
"""

from typing import NamedTuple

import torch

PAIRINGS = ("half", "interleaved")


class Rotation(NamedTuple):
    """What `rotate` multiplies with; both are fp32, of width D, and broadcast to (B, H, T, D)."""

    cos: torch.Tensor  # column by column: the cosine of its pair's angle
    sin: torch.Tensor  # the sine, negative in the first column of each pair
    pairing: str


def frequencies(d_head, base=10000.0, device=None):
    """The angle per position of each pair, w_i: (D/2,) fp32, from 1 down to almost 1/base. d_head: D, even."""
    return base ** (-torch.arange(0, d_head, 2, device=device, dtype=torch.float32) / d_head)


def rotation(positions, d_head, base=10000.0, scale=1.0, pairing="half"):
    """The rotation of each position.

    positions: (T,), or (B, T) where rows differ; scale: positions are divided by it (position interpolation). Angles are
    fp32 whatever the model computes in: bf16 cannot tell position 257 from 256. ValueError for an unknown pairing.
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"pairing must be one of {', '.join(PAIRINGS)}, not {pairing}")
    angles = positions[..., None].float() / scale * frequencies(d_head, base, positions.device)  # (..., T, D/2)
    cos, sin = angles.cos(), angles.sin()
    if pairing == "half":
        cos, sin = torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)
    else:
        cos, sin = (torch.stack(pair, dim=-1).flatten(-2) for pair in ((cos, cos), (-sin, sin)))
    if positions.ndim == 2:
        cos, sin = cos[:, None], sin[:, None]  # (B, T, D) -> (B, 1, T, D): the same for all heads
    return Rotation(cos, sin, pairing)


def rotate(x, by):
    """Turn queries or keys. x: (B, H, T, D); by: their positions' `Rotation`. Returns (B, H, T, D) in x's dtype."""
    if by.pairing == "half":
        partner = x.roll(x.shape[-1] // 2, dims=-1)  # column i's partner stands D/2 away, either way round
    else:
        partner = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return torch.addcmul(x * by.cos, partner, by.sin).to(x.dtype)


def ntk_base(base, scale, d_head):
    """The base with which the slowest pair turns `scale` times slower and the fastest as before (bloc97 2023, "NTK-aware").

    d_head: D above 2. Position interpolation slows all pairs alike and so blurs neighbours; this spreads the slowing.
    """
    return base * scale ** (d_head / (d_head - 2))


def half_to_interleaved(weight, d_head):
    """Reorder the rows of W_q or W_k so that "interleaved" gives the scores that "half" gave.

    weight: (heads * D, ...), the rows of a head together; a bias (heads * D,) and the weights (D,) of QK-norm are converted
    alike.
    """
    return weight.unflatten(0, (-1, 2, d_head // 2)).transpose(1, 2).flatten(0, 2)


def interleaved_to_half(weight, d_head):
    """The inverse of `half_to_interleaved`."""
    return weight.unflatten(0, (-1, d_head // 2, 2)).transpose(1, 2).flatten(0, 2)
