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

# These take longest with --quick too: they start processes or train several models. The parts' tests cover what they use.
LONG = {"part_2/demo_bugs.py", "part_3/demo_kv_cache.py", "part_4/demo_bugs.py", "part_4/demo_checkpoint.py",
        "part_4/demo_distributed.py", "part_4/demo_precision.py", "part_4/demo_scaling.py",
        "part_4/demo_speedrun.py", "part_4/demo_throughput.py", "part_5/demo_balancing.py",
        "part_5/demo_comparison.py", "part_5/demo_expert_parallel.py", "part_5/demo_moe.py",
        "part_5/demo_specialisation.py", "part_6/demo_bugs.py", "part_6/demo_curriculum.py",
        "part_6/demo_evaluation.py", "part_6/demo_masked_loss.py", "part_7/demo_losses.py",
        "part_7/demo_sanity_checks.py", "part_8/demo_ablation.py", "part_8/demo_bugs.py",
        "part_8/demo_over_optimisation.py", "part_8/demo_policy.py", "part_8/demo_ppo_loss.py",
        "part_8/demo_ppo_step.py", "part_8/demo_rewards.py", "part_8/demo_rollout_speed.py",
        "part_9/demo_grpo_speed.py", "part_9/demo_ppo_vs_grpo.py", "part_9/demo_rlvr.py",
        "part_9/demo_token_ledger.py"}
A_FEW = SCRIPTS[::len(SCRIPTS) // 3]  # for what takes two processes a script


def is_long(path):
    """Whether even --quick takes the script longer than others."""
    return relative(path) in LONG


def marked(paths, is_slow):
    """The scripts as parameters, those that are slow with their mark."""
    return [pytest.param(path, marks=pytest.mark.slow if is_slow(path) else (), id=relative(path)) for path in paths]


def run(*words, cwd):
    return subprocess.run([sys.executable, *words], cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300)


@pytest.fixture(scope="module")
def quick_runs(request):
    """The result of `--quick`, from its own folder, of each script that is asked for and of the trainers up to its part.

    A part's demos look at what its trainers have made. Two at a time: the trainers, one after the other, beside the demos of
    the parts that have been trained."""
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

    asked = {item.callspec.params["path"] for item in request.session.items if "quick_runs" in item.fixturenames}
    for png in ROOT.glob("part_[0-9]/out/quick/*.png"):
        png.unlink()
    last = max(path.parent for path in asked)
    trainers = [path for path in SCRIPTS if path.name.startswith("train") and path.parent <= last]
    results, trained = {}, {part: threading.Event() for part in PARTS}
    with ThreadPoolExecutor(2) as pool:
        training = pool.submit(train)
        results |= dict(pool.map(demonstrate, [path for path in SCRIPTS if path in asked and path not in trainers]))
        training.result()
    return results


@pytest.mark.parametrize("path", marked(SCRIPTS, is_long))
def test_quick_run_from_its_own_folder_succeeds_without_a_warning(path, quick_runs):
    result = quick_runs[path]
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip(), "a script says what it found"


@pytest.mark.parametrize("path", marked([path for path in SCRIPTS if path.name.startswith("demo_")], is_long))
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


@pytest.mark.parametrize("path", marked(SCRIPTS, lambda path: path not in A_FEW))
def test_help_explains_from_the_root_and_as_a_module_in_a_process_of_its_own(path):
    module = f"{path.parent.name}.{path.stem}"
    with ThreadPoolExecutor(2) as pool:
        as_file, as_module = pool.map(lambda words: run(*words, "--help", cwd=ROOT), ((relative(path),), ("-m", module)))
    for result in (as_file, as_module):
        assert result.returncode == 0, result.stderr
        assert says_what_it_is_for(result.stdout)
