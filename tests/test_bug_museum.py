"""Every mistake of the bug museum makes the test fail that is said to catch it, and leaves no trace once taken away."""

import re
import subprocess
import sys

import pytest

from tests.repository import PARTS, ROOT, module_of, relative

MUSEUMS = {path.name: module_of(path / "bugs.py") for path in PARTS if (path / "bugs.py").exists()}
BUGS = [(part, bug) for part, museum in MUSEUMS.items() for bug in museum.BUGS]
RUN = """
import sys, pytest
from {part} import bugs
from contextlib import nullcontext
[bug] = [bug for bug in bugs.BUGS if bug.name == {name!r}]
with bug.installed() if {wrong} else nullcontext():
    sys.exit(pytest.main(["-q", "-x", "-m", "", "-p", "no:cacheprovider", bug.test]))
"""


def run_test(part, bug, wrong):
    """The named test in a process of its own, with the mistake or without."""
    code = RUN.format(part=part, name=bug.name, wrong=wrong)
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("part, bug", BUGS, ids=[f"{part}: {bug.name}" for part, bug in BUGS])
def test_a_mistake_makes_its_named_test_fail(part, bug):
    right = run_test(part, bug, wrong=False)
    assert right.returncode == 0 and re.search(r"\d+ passed", right.stdout), right.stdout + right.stderr
    wrong = run_test(part, bug, wrong=True)
    assert wrong.returncode == 1 and re.search(r"^FAILED ", wrong.stdout, re.M), wrong.stdout + wrong.stderr
    # It fails by what it asserts: a crash would say nothing about the mistake.
    assert re.search(r"^E +(assert |AssertionError|Failed: DID NOT RAISE)", wrong.stdout, re.M), wrong.stdout


@pytest.mark.parametrize("part, bug", BUGS, ids=[f"{part}: {bug.name}" for part, bug in BUGS])
def test_a_mistake_stands_everywhere_while_it_is_installed_and_nowhere_afterwards(part, bug):
    def found():
        module, _, path = bug.target.partition(":")
        owner = sys.modules[module] if module in sys.modules else __import__(module, fromlist=["_"])
        for name in path.split("."):
            owner = getattr(owner, name)
        return owner
    right = found()
    names = [vars(module) for name, module in list(sys.modules.items()) if re.match(r"part_\d\.", name)]
    tables = [value for variables in names for value in variables.values() if type(value) is dict]
    others = [(table, key) for table in names + tables for key, value in table.items() if value is right]
    with bug.installed():
        assert found() is not right
        assert all(table[key] is not right for table, key in others)
    assert found() is right
    assert all(table[key] is right for table, key in others)


@pytest.mark.parametrize("path", [path / "bugs.py" for path in PARTS if (path / "bugs.py").exists()], ids=relative)
def test_the_page_shows_every_mistake_of_its_part(path):
    page = (path.parent / "README.md").read_text(encoding="utf-8")
    for bug in MUSEUMS[path.parent.name].BUGS:
        assert bug.name in page and bug.test.rpartition("::")[2] in page
