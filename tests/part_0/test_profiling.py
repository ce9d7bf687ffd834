"""The profile of steps whose operators are known beforehand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from part_0.profiling import CATEGORIES, Row, by_category, category, phase, profile_step

CPU = torch.device("cpu")


def known_step(calls):
    """A step with 3 mm and 2 gelu in the forward phase, 1 mm in the backward phase, an addition in the optimizer."""
    a = torch.rand(8, 8)

    def step():
        calls.append(1)
        with phase("forward"):
            for _ in range(3):
                torch.mm(a, a)
            for _ in range(2):
                torch.nn.functional.gelu(a)
        with phase("backward"):
            torch.mm(a, a)
        with phase("optimizer"):
            a.add(1.0)
        torch.exp(a)

    return step


@pytest.fixture(scope="module")
def rows():
    return profile_step(known_step([]), CPU, n_steps=4, warmup=1)


def test_every_operator_is_counted_once_a_step_in_its_phase(rows):
    known = {"aten::mm", "aten::gelu", "aten::add", "aten::exp"}
    assert {(row.phase, row.name): row.calls for row in rows if row.name in known} == {
        ("forward", "aten::mm"): 3, ("forward", "aten::gelu"): 2, ("backward", "aten::mm"): 1,
        ("optimizer", "aten::add"): 1, ("", "aten::exp"): 1}


def test_shares_add_up_to_one_and_follow_the_times(rows):
    total = sum(row.milliseconds for row in rows)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert all(row.share == pytest.approx(row.milliseconds / total) for row in rows)
    assert [row.milliseconds for row in rows] == sorted((row.milliseconds for row in rows), reverse=True)


def test_time_in_a_called_operator_counts_once():
    # matmul of two matrices does nothing but call mm: nearly all the time is mm's, and counting both would double it.
    a = torch.rand(256, 256)
    times = {row.name: row.milliseconds for row in profile_step(lambda: torch.matmul(a, a), CPU, n_steps=3)}
    assert times["aten::mm"] > times["aten::matmul"]


def test_warm_up_steps_run_before_the_profiled_ones():
    calls = []
    profile_step(known_step(calls), CPU, n_steps=4, warmup=3)
    assert len(calls) == 7


def test_a_training_step_is_split_into_its_phases():
    layer = torch.nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.AdamW(layer.parameters(), fused=True)

    def step():
        with phase("forward"):
            loss = layer(torch.ones(4, 8)).sum()
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()

    calls = {(row.phase, row.name): row.calls for row in profile_step(step, CPU, n_steps=2)}
    # One product forward; backward only the one for the weight, because the input needs no gradient.
    assert calls["forward", "aten::mm"] == calls["backward", "aten::mm"] == 1
    assert calls["optimizer", "aten::_fused_adamw_"] == 1
    assert ("optimizer", "aten::mm") not in calls


@pytest.mark.parametrize("name, expected", [
    ("aten::mm", "matrix products"), ("aten::addmm", "matrix products"), ("aten::bmm", "matrix products"),
    ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"), ("aten::_softmax", "attention"),
    ("aten::native_layer_norm", "normalisation"), ("aten::_fused_rms_norm", "normalisation"),
    ("aten::add_", "element-wise"), ("aten::gelu_backward", "element-wise"), ("aten::silu", "element-wise"),
    ("aten::copy_", "copies"), ("aten::_fused_adamw_", "optimizer"), ("aten::_foreach_mul_", "optimizer"),
    ("aten::_log_softmax", "other"), ("aten::embedding_dense_backward", "other"), ("phase: forward", "other")])
def test_operators_fall_into_the_kinds_a_reader_knows(name, expected):
    assert category(Row("forward", name, 1, 1.0, 1.0)) == expected


def test_everything_in_the_optimizer_phase_is_optimizer():
    assert category(Row("optimizer", "aten::mul_", 1, 1.0, 1.0)) == "optimizer"


def test_grouping_loses_nothing(rows):
    groups = by_category(rows)
    assert tuple(groups) == CATEGORIES
    assert sorted(row for members in groups.values() for row in members) == sorted(rows)


def test_the_profiler_keeps_stderr_clean_and_warns_of_nothing():
    program = ("import torch; from part_0.profiling import profile_step; "
               "profile_step(lambda: torch.mm(torch.ones(2, 2), torch.ones(2, 2)), torch.device('cpu'), 2, 1)")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
