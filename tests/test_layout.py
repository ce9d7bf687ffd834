"""The rules of the house: what lies where, who may import whom, and how a script and a lesson begin."""

import ast
import re
import sys

import pytest

from tests.repository import FILES, LIBRARY, PARTS, ROOT, SCRIPTS, module_of, relative, tree

FIRST_LINE = ("import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))"
              "  # so that part_N is found")
LESSONS = {0: 2, 1: 7, 2: 6, 3: 6, 4: 5, 5: 3, 6: 4, 7: 4, 8: 5, 9: 5}  # part: its number of lessons
RUNTIME = {"torch", "numpy", "matplotlib", "tiktoken", "tqdm", "tensorboard", "PIL", "regex", "pytest", "hypothesis"}


def imported(path):
    """The modules that a file imports, wherever in it."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def test_the_top_level_is_fixed():
    allowed = {f"part_{i}" for i in range(10)} | {"screenshots", "tests", "generate_screenshots.py", "requirements.txt",
                                                  "README.md", "pyproject.toml", "LICENSE", "venv", "__pycache__"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} <= allowed


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_imports_go_to_the_same_or_an_earlier_part(path):
    part = int(path.parent.name[-1])
    for name in imported(path):
        found = re.match(r"part_(\d)\b", name)
        assert not found or int(found[1]) <= part, f"{relative(path)} imports {name}"
        root = name.split(".")[0]
        assert found or root in RUNTIME | set(sys.stdlib_module_names), f"{name} is no runtime package"


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_a_script_opens_with_its_lesson_and_the_agreed_line(path):
    body = tree(path).body
    assert re.match(rf"Lesson {path.parent.name[-1]}\.\d - ", ast.get_docstring(tree(path)))
    assert path.read_text(encoding="utf-8").splitlines()[body[1].lineno - 1] == FIRST_LINE
    assert path.read_text(encoding="utf-8").count("sys.path") == 1


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_a_library_module_opens_with_its_lesson_edits_no_path_and_prints_nothing(path):
    assert re.match(rf"Lesson {path.parent.name[-1]}\.\d - ", ast.get_docstring(tree(path)))
    assert "sys.path" not in path.read_text(encoding="utf-8")
    calls = [node.func for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    to_stderr = {"cli.py"}  # the one place where a script's last words are printed
    assert path.name in to_stderr or not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_no_module_hides_one_of_python_s_or_of_a_runtime_package(path):
    assert path.stem not in set(sys.stdlib_module_names) | RUNTIME


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_a_script_is_one_dataclass_with_quick_and_one_main(path):
    module = module_of(path)
    assert callable(module.main) and module.Config.__dataclass_params__.frozen
    quick = module.Config(**module.Config.QUICK, quick=True)
    assert quick.quick is True and module.Config().quick is False


def test_every_public_name_of_a_library_module_says_what_it_is():
    silent = []
    for path in LIBRARY:
        for node in tree(path).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    silent.append(f"{relative(path)}: {node.name}")
    assert not silent


def rows():
    """The rows of README.md's table of lessons, as lists of cells."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if re.match(r"\| \d\.\d \|", line)]


def test_the_readme_s_table_has_every_lesson_of_every_part_there_is_in_order():
    expected = [f"{part}.{i}" for part in (int(path.name[-1]) for path in PARTS) for i in range(1, LESSONS[part] + 1)]
    assert [row[0] for row in rows()] == expected


@pytest.mark.parametrize("row", rows(), ids=lambda row: row[0])
def test_a_row_leads_to_module_demo_figure_and_test(row):
    number, name, *cells = row
    part = f"part_{number[0]}"
    folders = (rf"{part}/\w+\.py", rf"{part}/(demo_|train)\w*\.py", rf"screenshots/{part}_\w+\.png",
               rf"tests/{part}/test_\w+\.py")
    assert name and len(cells) == 4
    for cell, pattern in zip(cells, folders):
        links = re.findall(r"\[[^\]]+\]\(([^)]+)\)", cell)
        assert links
        for link in links:
            assert re.fullmatch(pattern, link) and (ROOT / link).is_file(), link


def test_requirements_give_ranges_and_install_nothing_of_the_checkout():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z]+>=[\d.]+,<[\d.]+", line) for line in lines)
    assert {"torch", "numpy", "matplotlib", "tiktoken", "tqdm", "tensorboard"} <= {line.split(">")[0] for line in lines}
