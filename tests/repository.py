"""What the tests of the whole share: where things are, and how to read a script without running it."""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = sorted(ROOT.glob("part_[0-9]"))
FILES = sorted(ROOT.glob("part_[0-9]/*.py"))
SCRIPTS = sorted((path for path in FILES if re.match(r"demo_|train|chat\.py$", path.name)),
                 key=lambda path: (path.parent.name, not path.name.startswith("train"), path.name))  # trainers come first
LIBRARY = [path for path in FILES if path not in SCRIPTS]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("part_[0-9]/README.md"))]
WARNINGS_ARE_ERRORS = ["-W", "error", *(word for kind in ("Deprecation", "PendingDeprecation", "Future")
                                        for word in ("-W", f"default::{kind}Warning"))]


def relative(path):
    """part_1/demo_x.py, as a test's id."""
    return path.relative_to(ROOT).as_posix()


def tree(path):
    """The syntax tree of a Python file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def module_of(path):
    """The imported module of a part's file."""
    __import__(name := f"{path.parent.name}.{path.stem}")
    return sys.modules[name]
