"""The readers' exercises: `python3 -m pytest tests/exercises -k part_3` checks the answers in tests/exercises/part_3.py.

There each function raises NotImplementedError until a reader has written it: that is the exercise. Nothing else imports
these files, the default run leaves them out, and tests/test_exercises.py proves that reference answers pass and unwritten
ones fail.
"""

import importlib
import re

import pytest


def pytest_addoption(parser):
    parser.addoption("--solutions", action="store_true", help="check the answers in tests/exercises/solutions instead")


@pytest.fixture
def answers(request):
    """The module of answers to this file's part: the reader's own, or with --solutions the reference."""
    part = re.search(r"part_\d", request.path.stem)[0]
    folder = "tests.exercises.solutions" if request.config.getoption("--solutions") else "tests.exercises"
    return importlib.import_module(f"{folder}.{part}")
