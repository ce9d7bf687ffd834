"""Lesson 2.6 - the bug museum: classic mistakes, each put in place of the right code for as long as one looks at it.

A wrong version is a small function in a part's bugs.py, and nowhere else: the modules of the lessons have no switch for it.

    with bug.installed():
        ...                 # whatever runs in here runs with the mistake

Each mistake names the test that catches it; tests/test_bug_museum.py proves that it does.
"""

import contextlib
import functools
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bug:
    """A mistake: what it is, what one sees of it, where it sits, and what catches it."""

    name: str  # "labels not shifted"
    symptom: str  # what a person sees who has made it, one sentence
    target: str  # the function or method that it replaces: "part_2.dataset:get_batch", "part_3.swiglu:SwiGLU.forward"
    wrong: Callable  # given the right function, returns the wrong one
    test: str  # the test that it makes fail, as pytest names it: "tests/part_2/test_dataset.py::test_..."

    @contextlib.contextmanager
    def installed(self):
        """While the context lasts, the wrong function stands wherever the right one is known by name."""
        module, _, path = self.target.partition(":")
        owner = importlib.import_module(module)
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        right = vars(owner)[name]
        wrong = functools.wraps(right)(self.wrong(right))
        # `from part_2.dataset import get_batch` gives another module a name of its own for the same function
        holders = [owner] if classes else [each for each in list(sys.modules.values()) if hasattr(each, "__dict__")]
        places = [(each, key) for each in holders for key, value in list(vars(each).items()) if value is right]
        for each, key in places:
            setattr(each, key, wrong)
        try:
            yield
        finally:
            for each, key in places:
                setattr(each, key, right)
