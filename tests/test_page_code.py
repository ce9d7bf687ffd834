"""The lines of code that a page shows beside an equation are lines of the functions that it names."""

import ast
import re

import pytest

from tests.repository import PAGES, relative, tree

HEADER = re.compile(r"# (\S+\.py): (\w[\w.]*(?:, \w[\w.]*)*)")  # such as "# moe.py: dispatch, MoE.forward"
EXCERPTS = [(page, block) for page in PAGES
            for block in re.findall(r"^```python\n(# \S+\.py: .*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)]


def bare(line):
    """A line without its indentation and what is remarked behind it."""
    return line.split("  # ")[0].strip()


def source_lines(path, name):
    """The lines of a function, or of "Class.method"."""
    node = tree(path)
    for part in name.split("."):
        [node] = [child for child in node.body if getattr(child, "name", None) == part]
    assert isinstance(node, ast.FunctionDef), f"{name} is no function"
    return path.read_text(encoding="utf-8").splitlines()[node.lineno - 1:node.end_lineno]


def missing_lines(folder, block):
    """The lines of an excerpt that do not stand, in this order, in the functions named above them."""
    missing, rest = [], None
    for line in block.splitlines():
        if header := HEADER.fullmatch(line):
            rest = iter([bare(code) for name in header[2].split(", ") for code in source_lines(folder / header[1], name)])
        elif bare(line) not in rest:  # an iterator: goes on behind the line that was found
            missing.append(line)
    return missing


@pytest.mark.parametrize("page, block", EXCERPTS, ids=[f"{relative(page)}-{block.splitlines()[0][2:]}"
                                                       for page, block in EXCERPTS])
def test_a_line_beside_an_equation_is_the_code_s_own(page, block):
    assert not missing_lines(page.parent, block)


def test_a_line_that_differs_and_a_wrong_order_are_found():
    [(page, block)] = [(page, block) for page, block in EXCERPTS if block.startswith("# pass_at_k.py: pass_at_k\n")]
    wrong = "return 1 - math.comb(n + c, k) / math.comb(n, k)"
    assert missing_lines(page.parent, block.replace("n - c", "n + c")) == [wrong]
    lines = block.splitlines()
    assert missing_lines(page.parent, "\n".join([lines[0], lines[1], "def pass_at_k(n, c, k):"]))
