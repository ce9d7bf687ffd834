"""Devices and precisions are refused by name, autocast changes the arithmetic, seeds and states repeat numbers."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from part_0 import device as device_module
from part_0.cli import InputError
from part_0.device import (
    DTYPES,
    autocast,
    available_devices,
    describe,
    fused_attention,
    grad_scaler,
    peak_memory,
    pick_device,
    pick_precision,
    rng_state,
    set_rng_state,
    set_seed,
    supported_precisions,
    synchronize,
)
from part_2.checkpoint import load_checkpoint, save_checkpoint
from tests.repository import ROOT

CPU = torch.device("cpu")


@pytest.fixture
def only_cpu(monkeypatch):
    """A machine without any GPU, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_the_cpu_is_always_there_and_last():
    assert available_devices()[-1] == "cpu"
    assert pick_device("cpu") == CPU


def test_auto_takes_the_best_device(monkeypatch, only_cpu):
    assert pick_device("auto") == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto").type == "cuda"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_missing_device_is_refused_by_name(name, only_cpu):
    with pytest.raises(InputError, match=f"--device {name} is not available here; there is: cpu"):
        pick_device(name)


def test_fp16_is_refused_on_a_cpu_with_what_there_is():
    with pytest.raises(InputError, match="--precision fp16 is not supported on cpu here; use one of: fp32"):
        pick_precision("fp16", CPU)


def test_bf16_on_a_cpu_depends_on_the_processor(monkeypatch):
    monkeypatch.setattr("part_0.device.cpu_has_bf16", lambda: True)
    assert pick_precision("bf16", CPU) == torch.bfloat16
    monkeypatch.setattr("part_0.device.cpu_has_bf16", lambda: False)
    assert supported_precisions(CPU) == ["fp32"]
    with pytest.raises(InputError, match="bf16"):
        pick_precision("bf16", CPU)


@pytest.mark.parametrize("has_bf16, dtype", [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_precision_is_bf16_where_the_hardware_has_it(has_bf16, dtype, monkeypatch):
    monkeypatch.setattr("part_0.device.cpu_has_bf16", lambda: has_bf16)
    assert pick_precision("auto", CPU) == dtype
    assert pick_precision("fp32", CPU) == torch.float32


# 1 + 2^-9 needs ten significant bits: fp32 has 24 and fp16 has 11; bf16 has 8 and rounds it to 1.
@pytest.mark.parametrize("name, product", [("fp32", 1 + 2**-9), ("fp16", 1 + 2**-9), ("bf16", 1.0)])
def test_autocast_multiplies_in_the_dtype(name, product):
    a, b = torch.tensor([[1.0, 2**-9]]), torch.ones(2, 1)
    with autocast(CPU, DTYPES[name]):
        result = a @ b
    assert result.dtype == DTYPES[name] and result.item() == product
    assert (a @ b).dtype == torch.float32  # and nothing lingers


def test_autocast_keeps_weights_and_gradients_in_fp32():
    layer = torch.nn.Linear(3, 2)
    with autocast(CPU, torch.bfloat16):
        layer(torch.ones(4, 3)).sum().backward()
    assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32


def test_attention_of_bf16_tensors_on_a_cpu_is_computed_in_fp32():
    # Rounded to bf16, the result would be off by up to 2^-9 of its size; fp32 is good to a few times 2^-24.
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 4).bfloat16() for _ in range(3))
    hidden = torch.ones(5, 5).triu(1).bool()
    scores = (query.double() @ key.double().transpose(-2, -1) / 2).masked_fill(hidden, -torch.inf)
    with autocast(CPU, torch.bfloat16):
        result = fused_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(result.double(), scores.softmax(-1) @ value.double(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", ["fp32", "bf16"])
def test_the_scaler_passes_other_precisions_through(name):
    loss = torch.tensor(0.123)
    assert grad_scaler(CPU, DTYPES[name]).scale(loss) is loss


def test_the_fp16_scaler_rescues_a_gradient_that_would_be_zero():
    weight = torch.nn.Parameter(torch.ones(1))
    scaler = grad_scaler(CPU, torch.float16)

    def gradient(scale):  # 2^-26 through an fp16 backward pass: below its smallest number, 2^-24, unless scaled up
        weight.grad = None
        scale((weight.half() * 2.0**-13).float() * 2.0**-13).sum().backward()
        return weight.grad

    assert gradient(lambda loss: loss) == 0
    gradient(scaler.scale)
    scaler.unscale_(torch.optim.SGD([weight], lr=1.0))
    assert weight.grad == 2.0**-26


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_one_seed_fixes_python_numpy_and_torch():
    set_seed(5)
    first = draws()
    set_seed(5)
    assert draws() == first
    set_seed(6)
    assert all(a != b for a, b in zip(draws(), first))


def test_a_seed_beyond_32_bits_is_taken():
    set_seed(2**40 + 1)


def test_a_random_state_comes_back_through_a_checkpoint(tmp_path):
    def draws():
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), *torch.rand(5).tolist()]

    set_seed(0)
    draws()  # random and NumPy now hold half of a pair of Gaussian numbers back
    save_checkpoint(tmp_path / "rng.pt", rng_state())
    first = draws()
    draws()
    set_rng_state(load_checkpoint(tmp_path / "rng.pt"))
    assert draws() == first


def test_a_random_state_from_more_gpus_restores_the_cpu_alone(monkeypatch):
    restored = []
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", restored.append)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    state = rng_state()
    first = torch.rand(2)
    set_rng_state({**state, "cuda": ["GPU 0", "GPU 1"]})
    assert torch.equal(torch.rand(2), first) and restored == []
    set_rng_state({**state, "cuda": ["GPU 0"]})
    assert restored == [["GPU 0"]]


def test_waiting_for_the_cpu_and_describing_it():
    synchronize(CPU)
    assert f"{torch.get_num_threads()} threads" in describe(CPU)


def test_an_x86_processor_that_only_emulates_bf16_does_not_count_as_having_it(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: False)
    assert not device_module.cpu_has_bf16()


@pytest.mark.skipif(device_module.resource is None, reason="Windows has no getrusage")
def test_the_peak_of_memory_rises_with_what_is_held_and_never_falls():
    # In a process of its own, with 256 MiB more than its peak so far (on Linux that begins with the peak of its parent).
    script = ("import torch; from part_0.device import peak_memory; cpu = torch.device('cpu');"
              "before = peak_memory(cpu); large = torch.ones((before + 2**28) // 4); during = peak_memory(cpu); del large;"
              "print(before, during, peak_memory(cpu))")
    child = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    before, during, after = map(int, child.stdout.split())
    assert 2**27 < during - before < 2**30 and after >= during and 2**25 < before < 2**33


def test_the_peak_is_in_bytes_whatever_the_system_counts_in(monkeypatch):
    class Resource:
        RUSAGE_SELF = 0

        @staticmethod
        def getrusage(who):
            return type("Usage", (), dict(ru_maxrss=3000))

    monkeypatch.setattr(device_module, "resource", Resource)
    for system, expected in (("Linux", 3000 * 1024), ("Darwin", 3000)):
        monkeypatch.setattr("platform.system", lambda system=system: system)
        assert peak_memory(CPU) == expected
    monkeypatch.setattr(device_module, "resource", None)
    assert peak_memory(CPU) is None


def test_on_a_gpu_the_peak_is_that_of_its_own_memory(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 456)
    assert (peak_memory(torch.device("cuda")), peak_memory(torch.device("mps"))) == (123, 456)
