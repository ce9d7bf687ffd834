"""Lesson 0.2 - the device, the precision and the seed: the only module that knows about device types.

Mixed precision keeps the weights in fp32 and runs the matrix products in bf16 or fp16 ("autocast"; Micikevicius et al.
2018, "Mixed Precision Training"). bf16 has fp32's range and needs nothing more; fp16 has less, so small gradients would
become zero unless the loss is scaled up before the backward pass and the gradients down again after it.
"""

import contextlib
import platform
import random

import numpy as np
import torch
import torch.nn.functional as F

from part_0.cli import InputError

try:
    import resource
except ImportError:  # Windows
    resource = None

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def available_devices():
    """Names of the usable device types, best first; "cpu" is always the last."""
    names = ["cuda"] if torch.cuda.is_available() else []
    if torch.backends.mps.is_available():
        names.append("mps")
    return [*names, "cpu"]


def pick_device(name="auto"):
    """The torch.device for "auto", "cpu", "cuda" or "mps"; InputError when this machine has none of that type."""
    if name == "auto":
        name = available_devices()[0]
    if name not in available_devices():
        raise InputError(f"--device {name} is not available here; there is: {', '.join(available_devices())}")
    return torch.device(name)


def cpu_has_bf16():
    """Whether this processor multiplies bf16 in hardware (AVX512-BF16, AMX or Arm's bf16); without it bf16 is slower."""
    # torch has no public query that covers x86 and Arm.
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):  # there oneDNN also says yes to plain AVX512, which emulates it
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return True


def supported_precisions(device):
    """The values of --precision that run at full speed on `device`, plainest first."""
    if device.type == "cuda":
        return ["fp32", "bf16", "fp16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["fp32", "fp16"]
    if device.type == "mps":
        return ["fp32", "fp16"]
    return ["fp32", "bf16"] if cpu_has_bf16() else ["fp32"]


def pick_precision(name, device):
    """The dtype of the matrix products: torch.float32, torch.bfloat16 or torch.float16.

    "auto" is bf16 on a GPU or processor that has it in hardware, and fp32 elsewhere. InputError when `device` does not
    support the precision asked for.
    """
    supported = supported_precisions(device)
    if name == "auto":
        name = "bf16" if "bf16" in supported else "fp32"
    if name not in supported:
        raise InputError(f"--precision {name} is not supported on {device.type} here; use one of: {', '.join(supported)}")
    return DTYPES[name]


def autocast(device, dtype):
    """Context in which matrix products run in `dtype` while the weights stay fp32; nothing happens for torch.float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def fused_attention(query, key, value, **options):
    """torch's `scaled_dot_product_attention`, which never holds the T x T weights; shapes and options are its own.

    On a CPU it runs in fp32 even under bf16 autocast: the backward pass of torch's bf16 CPU kernel is several times slower.
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(query.float(), key.float(), value.float(), **options)
    return F.scaled_dot_product_attention(query, key, value, **options)


def grad_scaler(device, dtype):
    """The loss scaler that fp16 gradients need; for any other dtype it passes the loss through unchanged."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)


def set_seed(seed):
    """Seed Python, NumPy and torch (every device) with one number."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state():
    """The state of every random number generator: Python's, NumPy's, and torch's of each device, for a checkpoint."""
    name, keys, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
            "cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all(),
            "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None}


def set_rng_state(state):
    """Put back what `rng_state` returned; a GPU's only where there are as many of its type as there were."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["cpu"])
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
    if state["mps"] is not None and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


def synchronize(device):
    """Wait until `device` has finished what it was given: GPUs run behind the program, and a clock must not."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    elif device.type == "mps":
        torch.mps.synchronize()


def peak_memory(device):
    """The most bytes that this process has held so far: on a CUDA device in tensors; on MPS what the driver holds now;
    else of main memory, everything included. None on Windows, whose Python does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024  # bytes there, KiB on Linux


def describe(device):
    """A line for people: the device's name and its memory or thread count."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if device.type == "mps":
        return f"Apple GPU, {torch.mps.recommended_max_memory() / 2**30:.0f} GiB usable"
    return f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
