"""Lesson 0.2 - where does the time of a training step go? torch.profiler, boiled down to a table.

The profiler writes down every operator (aten::mm, aten::gelu ...) with the time it ran. An operator may call others, so
the times that can be added up are the self times: without what was spent in the operators called. On a GPU they are the
times of its kernels; an Apple GPU's kernels are not seen, only how long the CPU took to launch them.

    def step():
        with phase("forward"):
            loss = ...
        with phase("backward"):
            loss.backward()
        with phase("optimizer"):
            optimizer.step()

    rows = profile_step(step, device)
"""

import os
from collections import defaultdict
from typing import NamedTuple

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from part_0.device import synchronize

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own log, which would go to stderr
_STEP, _PHASE = "step", "phase: "

# Operator names without "aten::" and a trailing underscore; `category` looks for them in this order.
MATRIX_PRODUCTS = {"mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "_addmm_activation"}
COPIES = {"copy", "fill", "zero", "cat", "clone", "contiguous", "_to_copy", "constant_pad_nd"}
ELEMENT_WISE = {"add", "sub", "rsub", "mul", "div", "neg", "pow", "exp", "log", "sqrt", "rsqrt", "sigmoid", "tanh",
                "relu", "threshold_backward", "gelu", "gelu_backward", "silu", "silu_backward", "where", "masked_fill",
                "clamp", "addcmul", "addcdiv", "lerp", "native_dropout", "native_dropout_backward", "sum", "mean"}
CATEGORIES = ("matrix products", "attention", "normalisation", "element-wise", "copies", "optimizer", "other")


class Row(NamedTuple):
    """One operator in one phase of the step: calls, self time in milliseconds, and its share of all self time."""

    phase: str
    name: str
    calls: int
    milliseconds: float
    share: float


def phase(name):
    """Context that marks a part of the step, such as "forward"; phases must not lie inside one another."""
    return record_function(_PHASE + name)


def profile_step(step, device, n_steps=10, warmup=3):
    """Call `step()` `warmup` times unwatched and `n_steps` times under torch.profiler; look at the fastest of these.

    Whatever else the machine does can only make a step slower. Returns a list of Row, longest first. An operator that
    is outside every phase has the phase "". On the CPU the rows add up to the duration of the step: the time between
    operators (Python, autograd's bookkeeping) is the self time of the marks around them.
    """
    for _ in range(warmup):
        step()
    synchronize(device)
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities, acc_events=True) as profiler:
        for _ in range(n_steps):
            with record_function(_STEP):
                step()
                synchronize(device)

    events = [event for event in profiler.events() if event.device_type == DeviceType.CPU]
    fastest = min((event.time_range for event in events if event.name == _STEP), key=lambda span: span.elapsed_us())
    events = [event for event in events if fastest.start <= event.time_range.start <= fastest.end]
    phases = [(event.name.removeprefix(_PHASE), event.time_range) for event in events if event.name.startswith(_PHASE)]
    calls, microseconds = defaultdict(int), defaultdict(float)
    for event in events:
        # By time and not by nesting: on a GPU the backward pass is launched from a thread of its own.
        inside = [name for name, span in phases if span.start <= event.time_range.start <= span.end]
        key = (inside or [""])[0], event.name
        calls[key] += 1
        if on_gpu:  # a marked span is no kernel, though the profiler gives it a time on the GPU as well
            microseconds[key] += 0.0 if event.is_user_annotation else event.self_device_time_total
        else:
            microseconds[key] += event.self_cpu_time_total
    total = sum(microseconds.values())
    rows = [Row(*key, calls[key], spent / 1e3, spent / total) for key, spent in microseconds.items()]
    return sorted(rows, key=lambda row: row.milliseconds, reverse=True)


def category(row):
    """Which of CATEGORIES the row's operator belongs to; all that happens in the phase "optimizer" is "optimizer".

    "other" holds the embedding, the loss, and the time between operators: Python and autograd's bookkeeping.
    """
    name = row.name.removeprefix("aten::").rstrip("_")
    if row.phase == "optimizer" or "fused_adam" in name or name.startswith("_foreach"):
        return "optimizer"
    if name in MATRIX_PRODUCTS:
        return "matrix products"
    if "attention" in name or name in ("_softmax", "_softmax_backward_data"):
        return "attention"
    if "_norm" in name:
        return "normalisation"
    if name in COPIES:
        return "copies"
    return "element-wise" if name in ELEMENT_WISE else "other"


def by_category(rows):
    """The rows of each of CATEGORIES, longest first, as a dict of lists; an empty list where nothing belongs to it."""
    groups = {name: [] for name in CATEGORIES}
    for row in sorted(rows, key=lambda row: row.milliseconds, reverse=True):
        groups[category(row)].append(row)
    return groups
