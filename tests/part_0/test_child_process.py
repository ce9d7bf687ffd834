"""A script in a process of the collector's behaves as it does under `python3 script`."""

import os
import subprocess
import sys

import pytest

from part_0.child_process import script_process
from tests.repository import ROOT

SCRIPT = '''"""What a script sees of the world."""
import os, pathlib, sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context


def square(x):
    return x * x, __name__


if __name__ == "__main__":
    print(sys.argv, __name__, __file__, pathlib.Path.cwd(), repr(sys.stdin.read()), os.environ["COLOUR"])
    print("é ✓", sys.stdout.encoding, sys.stdout.isatty())
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        print(list(pool.map(square, [2, 3])))
    print("to stderr", file=sys.stderr)
    os.system("echo from a child")
'''


def run(folder, *words, **options):
    child = script_process(folder, *words, **options)
    child.start()
    child.join(60)
    return child.exitcode


def test_it_sees_what_it_would_see_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv("COLOUR", "green")  # after the fork server may have been started
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    (tmp_path / "part_1").mkdir()
    path = tmp_path / "part_1" / "demo.py"
    path.write_text(SCRIPT, encoding="utf-8")
    assert run(tmp_path, "part_1/demo.py", "--steps", "3", log=tmp_path / "log") == 0
    alone = subprocess.run([sys.executable, str(path), "--steps", "3"], cwd=tmp_path, stdin=subprocess.DEVNULL,
                           capture_output=True, text=True, encoding="utf-8", check=True)
    ours = (tmp_path / "log").read_text(encoding="utf-8").splitlines()
    assert sorted(ours) == sorted([*alone.stdout.splitlines(), "to stderr"])


@pytest.mark.parametrize("code, expected, said", [("raise SystemExit(3)", 3, ""), ("raise SystemExit", 0, ""),
                                                  ("1 / 0", 1, "ZeroDivisionError: division by zero"),
                                                  ("raise SystemExit('no such file')", 1, "no such file"),
                                                  ("import os; os._exit(7)", 7, "")])
def test_it_ends_as_the_script_does(tmp_path, code, expected, said):
    (tmp_path / "demo.py").write_text(code)
    assert run(tmp_path, "demo.py", log=tmp_path / "log") == expected
    assert said in (tmp_path / "log").read_text()


def test_one_thread_is_meant_for_torch_and_for_what_the_script_starts(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "demo.py").write_text("import os, torch; print(torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])")
    assert run(tmp_path, "demo.py", log=tmp_path / "log", one_thread=True) == 0
    assert (tmp_path / "log").read_text().split() == ["1", "1"]


def test_a_run_leaves_nothing_to_the_next(tmp_path):
    (tmp_path / "demo.py").write_text("import sys, torch; print('mine' in sys.modules, torch.initial_seed())\n"
                                      "sys.modules['mine'] = sys; torch.manual_seed(5)")
    seen = []
    for _ in range(2):
        assert run(tmp_path, "demo.py", log=tmp_path / "log") == 0
        seen.append((tmp_path / "log").read_text())
    assert seen[0] == seen[1] and seen[0].startswith("False")


def test_a_run_of_this_repository_gives_the_same_numbers_either_way(tmp_path):
    words = ["part_1/demo_attention_numpy.py", "--quick"]
    assert run(ROOT, *words, log=tmp_path / "log") == 0
    alone = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=True)
    assert (tmp_path / "log").read_text(encoding="utf-8").splitlines() == alone.stdout.splitlines()
    assert os.path.getsize(tmp_path / "log") > 20
