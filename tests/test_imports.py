"""Importing a lesson's module costs little beyond torch: what is slow to import waits for the function that needs it."""

import subprocess
import sys

from tests.repository import LIBRARY, ROOT

# Each took from half a second to four: the compiler, tensors spread over processes, symbolic shapes, logs, and figures.
SLOW = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "torch.distributed.fsdp", "sympy",
        "torch.distributed.checkpoint", "torch.utils.tensorboard", "tensorboard", "matplotlib"}
COUNT = """
import sys, torch, numpy
before = set(sys.modules)
import {}
print(*set(sys.modules) - before)
"""


def test_importing_every_library_module_but_plotting_loads_nothing_slow_beyond_torch():
    modules = [f"{path.parent.name}.{path.stem}" for path in LIBRARY if path.name != "plotting.py"]
    code = COUNT.format(", ".join(modules))
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 0, result.stderr
    added = set(result.stdout.split())
    assert set(modules) <= added and not added & SLOW
