"""What makes a script's fingerprint change, on a repository of a few lines."""

import pytest

from part_0 import up_to_date


@pytest.fixture
def root(tmp_path):
    """part_2/demo.py imports part_1.a, which imports part_1.b within a function; part_1.c stands alone."""
    files = {"part_2/demo.py": "from part_1.a import f\nimport json, part_2.own\n", "part_2/own.py": "",
             "part_1/a.py": "def f():\n    from part_1 import b\n", "part_1/b.py": "X = 1\n", "part_1/c.py": "X = 1\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def marks(root, trainers=()):
    return up_to_date.fingerprint(root, "part_2/demo.py", trainers)


def test_the_code_of_a_script_is_all_that_it_imports_directly_or_not(root):
    names = [path.relative_to(root).as_posix() for path in up_to_date.code_of(root, "part_2/demo.py")]
    assert names == ["part_1/a.py", "part_1/b.py", "part_2/demo.py", "part_2/own.py"]


@pytest.mark.parametrize("name, text, changes", [
    ("part_1/b.py", "X = 2\n", True), ("part_1/b.py", "X  =  1  # as before\n", False), ("part_1/c.py", "X = 2\n", False),
    ("part_2/demo.py", "from part_1.a import f\nimport part_2.own\n", True), ("part_1/b.py", "X = (", True)])
def test_code_counts_but_not_its_layout_nor_what_is_not_imported(root, name, text, changes):
    before = marks(root)
    (root / name).write_text(text)
    assert (marks(root) != before) == changes


def test_renaming_a_module_changes_the_fingerprint(root):
    before = marks(root)
    (root / "part_1" / "b.py").rename(root / "part_1" / "d.py")
    (root / "part_1" / "a.py").write_text("def f():\n    from part_1 import d\n")
    assert marks(root) != before


@pytest.mark.parametrize("trainer, counts", [("part_1/train.py", True), ("part_3/train.py", False),
                                             ("part_2/demo.py", False)])
def test_what_a_trainer_made_counts_where_its_part_is_imported(root, trainer, counts):
    before = marks(root, [trainer])
    record = up_to_date.record_path(root, trainer)
    record.parent.mkdir(parents=True)
    record.write_text('{"outputs": {"part_1/runs/train/best.pt": "abc"}}')
    assert (marks(root, [trainer]) != before) == counts


@pytest.mark.parametrize("name", ["python_version", "torch_version"])
def test_versions_count(root, monkeypatch, name):
    before = marks(root)
    owner = up_to_date.platform if name == "python_version" else up_to_date
    monkeypatch.setattr(owner, name, lambda: "another")
    assert marks(root) != before


@pytest.mark.parametrize("text", ["", "[]", "{", '{"fingerprint": 1}', '{"fingerprint": "m", "outputs": 3}'])
def test_without_a_whole_record_nothing_is_up_to_date(root, text):
    path = up_to_date.record_path(root, "part_2/demo.py")
    path.parent.mkdir()
    path.write_text(text)
    assert not up_to_date.is_up_to_date(root, "part_2/demo.py", "m")


def test_it_is_up_to_date_while_mark_and_outputs_are_what_they_were(root):
    path = up_to_date.record_path(root, "part_2/demo.py")
    path.parent.mkdir()
    (root / "made").write_bytes(b"abc")
    # SHA-256 of "abc": FIPS 180-2, appendix B.1
    path.write_text('{"fingerprint": "m", "outputs": '
                    '{"made": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}}')
    assert up_to_date.is_up_to_date(root, "part_2/demo.py", "m")
    assert not up_to_date.is_up_to_date(root, "part_2/demo.py", "n")
    (root / "made").write_bytes(b"abd")
    assert not up_to_date.is_up_to_date(root, "part_2/demo.py", "m")
    (root / "made").unlink()
    assert not up_to_date.is_up_to_date(root, "part_2/demo.py", "m")
