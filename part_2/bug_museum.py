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

    def describe(self, right, wrong):
        """Lines for a person: the mistake, what is measured without it and with it (two texts), and what catches it."""
        return f"{self.name}: {self.symptom}\n    right   {right}\n    wrong   {wrong}\n    test    {self.test}"

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
        # `from part_2.dataset import get_batch` gives another module a name of its own for the same function, and some
        # modules hold functions in a table: SCHEDULES = {"cosine": warmup_cosine, ...}
        holders = [owner] if classes else [each for each in list(sys.modules.values()) if hasattr(each, "__dict__")]
        places = [(each, key) for each in holders for key, value in list(vars(each).items()) if value is right]
        tables = {id(value): value for each in holders for value in list(vars(each).values()) if type(value) is dict}
        entries = [(table, key) for table in tables.values() for key, value in list(table.items()) if value is right]
        try:
            self._put(wrong, places, entries)
            yield
        finally:
            self._put(right, places, entries)

    @staticmethod
    def _put(function, places, entries):
        for owner, key in places:
            setattr(owner, key, function)
        for table, key in entries:
            table[key] = function
