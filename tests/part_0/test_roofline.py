"""The roofline's arithmetic by hand, and a clock that is told what time it is: no test measures this machine."""

import itertools

import pytest
import torch

from part_0 import roofline
from part_0.roofline import (
    MatmulSpeed,
    attainable,
    best_seconds,
    matmul_flops,
    matmul_intensity,
    matmul_peak,
    matmul_speed,
    matmul_sweep,
    memory_bandwidth,
)

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; `clock(seconds)` moves it on."""
    now = [0.0]
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: now[0])

    def advance(seconds):
        now[0] += seconds

    return advance


def test_the_fastest_call_counts_and_the_first_only_warms_up(clock):
    durations = iter([0.25, 4.0, 1.0, 3.0, 2.0, 9.0])  # the first would be the fastest; the time is up after 10 s
    assert best_seconds(lambda: clock(next(durations)), CPU, seconds=10) == 1.0
    assert next(durations) == 9.0


def test_a_slow_call_is_timed_once_and_no_more(clock):
    calls = []
    assert best_seconds(lambda: (calls.append(1), clock(7.0)), CPU, seconds=0.5) == 7.0
    assert len(calls) == 2  # one to warm up, one timed


def test_a_small_product_by_hand():
    # (2, 3) @ (3, 3): 6 results of 3 products and 3 sums. 6 + 9 + 6 numbers move, at 4 or 2 bytes each.
    assert matmul_flops(2, 3) == 36
    assert matmul_intensity(2, 3, torch.float32) == pytest.approx(36 / 84)
    assert matmul_intensity(2, 3, torch.bfloat16) == pytest.approx(36 / 42)


def test_a_single_row_does_half_a_flop_per_byte_at_any_size():
    # fp32: 2 n^2 FLOPs over 4 n^2 bytes of weights; a square product grows with n: 2 n^3 / 12 n^2 = n / 6
    assert matmul_intensity(1, 10_000, torch.float32) == pytest.approx(0.5, rel=1e-3)
    assert matmul_intensity(600, 600, torch.float32) == pytest.approx(100)


def test_the_roof_is_slanted_before_the_ridge_and_flat_behind_it():
    # 100 GFLOP/s and 20 GB/s meet at 5 FLOP/byte
    assert [attainable(x, 100, 20) for x in (0.5, 2, 5, 50)] == [10, 40, 100, 100]


def test_speed_is_flops_over_seconds(monkeypatch):
    monkeypatch.setattr(roofline, "best_seconds", lambda function, device, seconds: 1e-6)
    # 2 x 10^3 FLOPs in a microsecond are 2 GFLOP/s; a row alone does a tenth of them
    assert matmul_speed(10, torch.float32, CPU).gflops == pytest.approx(2.0)
    assert matmul_speed(10, torch.float32, CPU, rows=1).gflops == pytest.approx(0.2)
    # 1 MB read and 1 MB written in a microsecond: 2,000 GB/s
    assert memory_bandwidth(1, CPU) == pytest.approx(2000)


def test_the_measured_product_is_the_product(monkeypatch):
    torch.manual_seed(0)
    done = []
    monkeypatch.setattr(torch, "mm", lambda a, b, out: done.append((a.shape, b.shape, a.dtype, b.dtype)))
    matmul_speed(6, torch.bfloat16, CPU, seconds=0.0, rows=2)
    assert set(done) == {((2, 6), (6, 6), torch.bfloat16, torch.bfloat16)}


def speed_of(gflops):
    """A stand-in for matmul_speed on a machine that does `gflops` at every size."""
    return lambda n, dtype, device, seconds: MatmulSpeed(n, n, gflops, 1.0)


def test_the_sweep_ends_where_a_call_takes_too_long(monkeypatch):
    # At 1 GFLOP/s n = 128 takes 4 ms and n = 256 takes 34 ms: the first beyond 20 ms is the last.
    monkeypatch.setattr(roofline, "matmul_speed", speed_of(1.0))
    assert [speed.n for speed in matmul_sweep(torch.float32, CPU)] == [64, 128, 256]


def test_the_sweep_of_a_fast_machine_ends_at_the_largest_size(monkeypatch):
    monkeypatch.setattr(roofline, "matmul_speed", speed_of(1e6))
    assert [speed.n for speed in matmul_sweep(torch.float32, CPU, largest=1000)] == [64, 128, 256, 512]


def test_the_peak_is_the_best_of_the_sweep(monkeypatch):
    speeds = itertools.cycle([3.0, 9.0, 5.0])
    monkeypatch.setattr(roofline, "matmul_speed", lambda n, *_: MatmulSpeed(n, n, next(speeds), 1.0))
    assert matmul_peak(torch.float32, CPU) == 9.0


def test_a_real_measurement_works_in_every_precision():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        speed = matmul_speed(8, dtype, CPU, seconds=0.0)
        assert (speed.rows, speed.n) == (8, 8) and speed.gflops > 0
