"""Lesson 0.2 - what must be run again? What a script makes depends on its code and on what it reads.

A fingerprint is a hash of both: of the script and every module of the parts that it imports, directly or not, without
comments and layout; of what the trainers before it have made, in the parts that it imports from; and of Python's and torch's
versions. After a script has run, part_N/out/<script>.json keeps its fingerprint and the hashes of the files that it made. It
need not run again while both are the same.
"""

import ast
import functools
import hashlib
import json
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def code_of(root, path):
    """The files under `root` that running the file `path` imports, itself included: a sorted list of Paths."""
    found, waiting = set(), [Path(root) / path]
    while waiting:
        file = waiting.pop()
        if file not in found and file.is_file():
            found.add(file)
            waiting += [Path(root) / (name.replace(".", "/") + ".py") for name in _read(file.read_bytes())[1]]
    return sorted(found)


@functools.cache  # most modules are imported by many scripts
def _read(source):
    """What a file's bytes say, without comments and layout, and the names of the parts' modules that it imports."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # running it will tell
        return repr(source), ()
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:  # `from part_3 import train` names a module too
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return ast.dump(tree), tuple(name for name in names if re.match(r"part_\d\.", name))


def hash_of_file(path):
    """The SHA-256 of a file's bytes, or None when it is not there."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def fingerprint(root, path, trainers):
    """The hash of what the script `path` depends on.

    trainers: the paths of those that come before it, of which count those in the parts that it imports from.
    """
    files = code_of(root, path)
    parts = {file.parent.name for file in files}
    seen = [platform.python_version(), torch_version()]
    for file in files:
        seen += [file.relative_to(root).as_posix(), _read(file.read_bytes())[0]]
    for trainer in trainers:
        if trainer.split("/")[0] in parts and trainer != path:
            seen += [trainer, json.dumps(read_record(root, trainer).get("outputs"))]
    return hashlib.sha256("\0".join(seen).encode("utf-8")).hexdigest()


def torch_version():
    """The installed torch's version; importing it would take a second."""
    try:
        return version("torch")
    except PackageNotFoundError:
        return "none"


def record_path(root, path):
    """part_1/out/demo_heads.json for part_1/demo_heads.py."""
    return Path(root) / Path(path).parent / "out" / f"{Path(path).stem}.json"


def read_record(root, path):
    """What is known of the last run of a script, {"fingerprint", "outputs"}, or, while it lasts and after it was cut off,
    {"begun"}; {} when nothing is known, or the record is damaged."""
    try:
        record = json.loads(record_path(root, path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def is_up_to_date(root, path, mark):
    """Whether a script has run with the fingerprint `mark`, and everything that it made is still there as it made it."""
    record = read_record(root, path)
    outputs = record.get("outputs")
    return (record.get("fingerprint") == mark and isinstance(outputs, dict)
            and all(hash_of_file(Path(root) / name) == digest for name, digest in outputs.items()))
