"""The readers' exercises: three functions a part, every check passes with the reference answers and fails before."""

import ast
import re
import shutil
import subprocess
import sys

import pytest

from tests.repository import PARTS, ROOT, relative, tree

FOLDER = ROOT / "tests" / "exercises"
FILES = sorted(FOLDER.glob("part_[0-9].py"))
each_part = pytest.mark.parametrize("path", FILES, ids=relative)


def functions(path):
    """The public functions of a file, by name."""
    return {node.name: node for node in tree(path).body
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}


def unsolved(function):
    """Whether nothing but the docstring and `raise NotImplementedError("solve me")` stands in a function."""
    return [ast.unparse(line) for line in function.body[1:]] == ["raise NotImplementedError('solve me')"]


def checks():
    """(part, function) of every check there is."""
    return {(path.stem, name) for path in FILES for name in functions(path)}


def outcomes(*words, cwd=ROOT):
    """What pytest makes of the exercises: the exit status, and the (part, function) that passed and those that failed."""
    result = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-rA", "--tb=no", *words],
                            cwd=cwd, capture_output=True, text=True, encoding="utf-8")
    lines = {word: set(re.findall(rf"^{word} \S*test_(part_\d)\.py::test_(\w+)", result.stdout, re.M))
             for word in ("PASSED", "FAILED")}
    return result.returncode, lines["PASSED"], lines["FAILED"]


def test_every_check_passes_with_the_reference_answers():
    assert outcomes("tests/exercises", "--solutions") == (0, checks(), set())


def test_every_check_fails_until_its_function_is_written():
    status, _, failed = outcomes("tests/exercises")
    missing = {(path.stem, name) for path in FILES for name, function in functions(path).items() if unsolved(function)}
    assert failed >= missing  # a reader who has solved some of them has no failing test here
    assert status == (1 if failed else 0)


def test_the_exercises_run_when_named_and_only_then(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests" / "exercises").mkdir(parents=True)
    for name in ("tests/test_part_1.py", "tests/exercises/test_part_2.py"):
        (tmp_path / name).write_text("def test_it():\n    pass\n", encoding="utf-8")
    assert outcomes(cwd=tmp_path) == (0, {("part_1", "it")}, set())
    assert outcomes("tests/exercises", "-k", "part_2", cwd=tmp_path) == (0, {("part_2", "it")}, set())


@each_part
def test_a_part_has_three_exercises_with_a_question_an_answer_and_a_check_each(path):
    asked, solved, checked = (functions(file) for file in (path, FOLDER / "solutions" / path.name,
                                                           FOLDER / f"test_{path.name}"))
    assert len(asked) == 3 and [f"test_{name}" for name in asked] == list(checked) and list(asked) == list(solved)
    for name, function in asked.items():
        assert len(ast.get_docstring(function) or "") > 100, f"{name} needs its question, its arguments and a hint"
        assert ast.unparse(function.args) == ast.unparse(solved[name].args) and not unsolved(solved[name])
        used = {node.attr for node in ast.walk(checked[f"test_{name}"]) if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name) and node.value.id == "answers"}
        assert used == {name}


@each_part
def test_the_page_ends_with_the_exercises_of_its_part(path):
    text = (ROOT / path.stem / "README.md").read_text(encoding="utf-8")
    heading, section = re.split(r"^(## .*)$", text, flags=re.M)[-2:]
    assert heading == "## Exercises"
    assert f"`python3 -m pytest tests/exercises -k {path.stem}`" in section and f"tests/exercises/{path.name}" in section
    for name in functions(path):
        assert f"`{name}`" in section, f"{path.stem}/README.md does not name {name}"


def test_every_part_has_exercises():
    assert [path.stem for path in FILES] == [path.name for path in PARTS]
