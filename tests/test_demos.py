"""Every script runs as a person would run it: from its own folder, as a file from the root, as a module."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from tests.repository import ROOT, SCRIPTS, WARNINGS_ARE_ERRORS, relative


def run(*words, cwd):
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def quick_runs():
    """The result of `--quick` of each script from its own folder, trainers first: demos look at what these have made.

    Two at a time; the scripts of one part that train run before its demos."""
    def quick(path):
        return path, run(*WARNINGS_ARE_ERRORS, path.name, "--quick", cwd=path.parent)

    for path in ROOT.glob("part_[0-9]/out/quick/*.png"):
        path.unlink()
    trainers = [path for path in SCRIPTS if path.name.startswith("train")]
    results = dict(map(quick, trainers))
    with ThreadPoolExecutor(2) as pool:
        results |= dict(pool.map(quick, [path for path in SCRIPTS if path not in trainers]))
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


@pytest.mark.parametrize("path", SCRIPTS, ids=relative)
def test_help_explains_from_the_root_and_as_a_module(path):
    module = f"{path.parent.name}.{path.stem}"
    with ThreadPoolExecutor(2) as pool:
        as_file, as_module = pool.map(lambda words: run(*words, "--help", cwd=ROOT), ((relative(path),), ("-m", module)))
    for result in (as_file, as_module):
        assert result.returncode == 0, result.stderr
        assert "Lesson" in result.stdout and "--quick" in result.stdout
