"""Lesson 0.2 - the device, the precision and the seed: the only module that knows about device types.

Mixed precision keeps the weights in fp32 and runs the matrix products in bf16 or fp16 ("autocast"; Micikevicius et al.
2018, "Mixed Precision Training"). bf16 has fp32's range and needs nothing more; fp16 has less, so small gradients would
become zero unless the loss is scaled up before the backward pass and the gradients down again after it.
"""

import contextlib
import functools
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


@contextlib.contextmanager
def packed_weights(model):
    """Context in which the linear layers of `model` run from weights packed for this processor; for inference only.

    On a CPU, torch hands an fp32 matrix product to a library that rearranges the weights in every call, which is most of
    the work when there are only a few tokens to multiply with. Here it is done once, into oneDNN's own layout. Until the
    context is left the weights must not change, and they are held twice. Where gradients are recorded, on other devices and
    in reduced precision everything stays as it was.
    """
    packed = _fp32_linears(model)
    try:
        for linear in packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
            linear.forward = functools.partial(_packed_linear, linear, weight)
        yield
    finally:
        for linear in packed:
            linear.__dict__.pop("forward", None)  # the class's own again


def _fp32_linears(model):
    """The linear layers that oneDNN could take over: none where it is missing, or where autocast uses it anyhow."""
    if not torch.backends.mkldnn.is_available() or torch.is_autocast_enabled("cpu"):
        return []
    return [module for module in model.modules() if type(module) is torch.nn.Linear
            and module.weight.device.type == "cpu" and module.weight.dtype == torch.float32]


def _packed_linear(linear, weight, x):
    if torch.is_grad_enabled():  # the packed product has no backward pass
        return F.linear(x, linear.weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, linear.bias, "none", [], "")


@contextlib.contextmanager
def onednn_products(model):
    """Context in which the linear layers of `model` that have no bias multiply by oneDNN, and so do their backward passes,
    even after the context was left. For training in fp32 on a CPU.

    On x86 torch gives fp32 products to MKL, which reached half of oneDNN's speed on the AMD processor where this was
    measured. Nothing is rounded more coarsely. On other devices and in reduced precision everything stays as it was.
    """
    found = [linear for linear in _fp32_linears(model) if linear.bias is None]
    try:
        for linear in found:
            linear.forward = functools.partial(_multiply, linear)
        yield
    finally:
        for linear in found:
            linear.__dict__.pop("forward", None)  # the class's own again


class _OneDNNProduct(torch.autograd.Function):
    """x W^T; x: (..., C), W: (D, C)."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return _onednn_product(x, weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        return (_onednn_product(rows, weight.t()).view_as(x) if ctx.needs_input_grad[0] else None,
                _onednn_product(rows.t(), x.flatten(0, -2).t()) if ctx.needs_input_grad[1] else None)


def _multiply(linear, x):
    return _OneDNNProduct.apply(x, linear.weight)


def _onednn_product(x, weight):
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


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
