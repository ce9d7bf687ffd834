"""Lesson 0.2 - the roofline: how fast this machine can be, and what holds a computation back.

    attainable FLOP/s = min(peak FLOP/s, memory bandwidth x arithmetic intensity)
    arithmetic intensity = FLOPs done / bytes moved to and from memory

(Williams, Waterman & Patterson 2009, "Roofline: An Insightful Visual Performance Model", section 3.) A large matrix
product uses each number it reads many times over and is held back by arithmetic; a vector times a matrix uses each
weight once and is held back by memory. The second is what a language model does when it writes one token at a time.

Peak and bandwidth are measured here, not looked up. Every measurement takes the fastest of many repeats: whatever else
the machine does can only make one slower.
"""

import math
import time
from typing import NamedTuple

import torch

from part_0.device import synchronize


class MatmulSpeed(NamedTuple):
    """One measured product of a (rows, n) with an (n, n) matrix."""

    rows: int
    n: int
    gflops: float
    intensity: float  # FLOP/byte


def best_seconds(function, device, seconds):
    """The fastest of as many calls of `function` as fit in about `seconds`, after one that warms up; at least one."""
    function()
    synchronize(device)
    best, started = math.inf, time.perf_counter()
    while True:
        call_started = time.perf_counter()
        function()
        synchronize(device)
        now = time.perf_counter()
        best = min(best, now - call_started)
        if now - started >= seconds:
            return best


def matmul_flops(rows, n):
    """FLOPs of (rows, n) @ (n, n): n multiplications and n additions for each of rows x n results."""
    return 2 * rows * n * n


def matmul_intensity(rows, n, dtype):
    """FLOP/byte of (rows, n) @ (n, n) when each matrix crosses the memory bus once."""
    return matmul_flops(rows, n) / (dtype.itemsize * (rows * n + n * n + rows * n))


def matmul_speed(n, dtype, device, seconds=0.2, rows=None):
    """Measure (rows, n) @ (n, n) in `dtype`; square when rows is None. Returns a MatmulSpeed.

    The second matrix lies transposed in memory, as the weight of an nn.Linear does.
    seconds: about how long to repeat. The call takes longer only where two products alone do.
    """
    rows = n if rows is None else rows
    a = torch.rand(rows, n, device=device).to(dtype)
    b = torch.rand(n, n, device=device).to(dtype).t()
    out = torch.empty(rows, n, device=device, dtype=dtype)
    fastest = best_seconds(lambda: torch.mm(a, b, out=out), device, seconds)
    return MatmulSpeed(rows, n, matmul_flops(rows, n) / fastest / 1e9, matmul_intensity(rows, n, dtype))


def matmul_sweep(dtype, device, seconds=0.2, smallest=64, largest=8192, call_seconds=0.02):
    """Measure square products, each with twice the n of the one before, until one takes longer than `call_seconds`.

    A laptop stops near n = 1,024 and a large GPU goes on to `largest`, with nothing set by hand. Returns a list of
    MatmulSpeed, smallest first.
    """
    speeds, n = [], smallest
    while n <= largest:
        speeds.append(matmul_speed(n, dtype, device, seconds))
        if matmul_flops(n, n) / (speeds[-1].gflops * 1e9) > call_seconds:
            break
        n *= 2
    return speeds


def matmul_peak(dtype, device, seconds=0.2):
    """The peak of the roofline, in GFLOP/s: the fastest matrix product found on this device in `dtype`."""
    return max(speed.gflops for speed in matmul_sweep(dtype, device, seconds))


def memory_bandwidth(megabytes, device, seconds=0.2):
    """GB/s of copying a tensor of this many MB (10^6 bytes): each byte is read once and written once, and both count.

    A tensor that fits into a cache measures the cache; for the memory itself take one far larger, such as 256 MB.
    """
    source = torch.rand(int(megabytes * 1e6) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), device, seconds) / 1e9


def attainable(intensity, peak, bandwidth):
    """The roof at `intensity` (FLOP/byte), in GFLOP/s, under a peak in GFLOP/s and a bandwidth in GB/s."""
    return min(peak, bandwidth * intensity)
