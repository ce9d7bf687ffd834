"""Lesson 0.2 - run a script as `python3 script` would, without the two seconds that loading torch takes each time.

On Linux a fork server (Python's multiprocessing) loads the large packages once, and each script runs in a copy of it, which
is there at once. Elsewhere a library that has been loaded may not survive the copying, and each script starts from nothing.
"""

import multiprocessing
import os
import runpy
import sys

CONTEXT = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
if sys.platform == "linux":
    CONTEXT.set_forkserver_preload(["torch", "matplotlib.pyplot", "part_0.child_process"])


def script_process(folder, path, *flags, log=os.devnull, one_thread=False):
    """A process, not yet started, that runs the script `path`, seen from `folder`, with `flags` in this folder.

    Its output goes to the file `log`; one_thread: for torch, and for the processes that the script starts. `exitcode` is the
    script's.
    """
    return CONTEXT.Process(target=_run, args=(str(folder), path, flags, str(log), dict(os.environ), one_thread))


def _run(folder, path, flags, log, environment, one_thread):
    os.environ.update(environment)  # a fork server has that of its own start
    os.chdir(folder)
    for name, flag, descriptors in ((os.devnull, os.O_RDONLY, (0,)), (log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, (1, 2))):
        opened = os.open(name, flag, 0o644)
        for descriptor in descriptors:
            os.dup2(opened, descriptor)
    for number, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8", errors="replace", closefd=False))
    if one_thread:
        os.environ["OMP_NUM_THREADS"] = "1"
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
    sys.argv = [path, *flags]
    runpy.run_path(os.path.abspath(path), run_name="__main__")
