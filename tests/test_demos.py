"""Every script runs as a person would run it: from its own folder, as a file from the root, as a module."""

import re
import runpy
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.repository import PARTS, ROOT, SCRIPTS, WARNINGS_ARE_ERRORS, relative

ONE_A_PART = {path.parent: path for path in SCRIPTS}.values()  # each takes two processes: the others are slow together


def run(*words, cwd):
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def quick_runs():
    """The result of `--quick` of each script from its own folder: a part's demos look at what its trainers have made.

    Two at a time: the trainers, one after the other, beside the demos of the parts that have been trained."""
    def quick(path):
        return path, run(*WARNINGS_ARE_ERRORS, path.name, "--quick", cwd=path.parent)

    def train():
        try:
            for part in PARTS:
                results.update(quick(path) for path in trainers if path.parent == part)
                trained[part].set()
        finally:  # the demos must not wait for ever
            for event in trained.values():
                event.set()

    def demonstrate(path):
        trained[path.parent].wait()
        return quick(path)

    for path in ROOT.glob("part_[0-9]/out/quick/*.png"):
        path.unlink()
    trainers = [path for path in SCRIPTS if path.name.startswith("train")]
    results, trained = {}, {part: threading.Event() for part in PARTS}
    with ThreadPoolExecutor(2) as pool:
        training = pool.submit(train)
        results |= dict(pool.map(demonstrate, [path for path in SCRIPTS if path not in trainers]))
        training.result()
    return results


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_quick_run_from_its_own_folder_succeeds_without_a_warning(path, quick_runs):
    result = quick_runs[path]
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "a script says what it found"


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.name.startswith("demo_")], ids=relative)
def test_a_demo_writes_its_figure_with_title_caption_and_the_command_that_makes_it(path, quick_runs):
    figures = []
    for png in (path.parent / "out" / "quick").glob("*.png"):
        with Image.open(png) as image:
            if image.text.get("Command", "").split()[1:2] == [relative(path)]:
                figures.append(image.text)
    assert figures
    for chunks in figures:
        assert len(chunks["Title"]) > 5 and len(chunks["Description"]) > 60
        assert re.fullmatch(r"python3 part_\d/\w+\.py( .*)?", chunks["Command"]) and "--quick" in chunks["Command"]
        assert float(chunks["Seconds"]) > 0


def says_what_it_is_for(text):
    return "Lesson" in text and "--quick" in text


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_help_explains(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0 and says_what_it_is_for(capsys.readouterr().out)


@pytest.mark.parametrize("path", [path if path in ONE_A_PART else pytest.param(path, marks=pytest.mark.slow)
                                  for path in SCRIPTS], ids=relative)
def test_help_explains_from_the_root_and_as_a_module_in_a_process_of_its_own(path):
    module = f"{path.parent.name}.{path.stem}"
    with ThreadPoolExecutor(2) as pool:
        as_file, as_module = pool.map(lambda words: run(*words, "--help", cwd=ROOT), ((relative(path),), ("-m", module)))
    for result in (as_file, as_module):
        assert result.returncode == 0, result.stderr
        assert says_what_it_is_for(result.stdout)
