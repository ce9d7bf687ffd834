import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from part_0.cli import InputError
from part_6.chat_data import load_conversations, read_lines, read_messages, turn

GOOD = '{"prompt": "What is 2 + 3?", "response": "5"}'


def said(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


@pytest.fixture
def written(tmp_path):
    """A function that writes lines (str or bytes) to a file and gives its path."""
    def write(*lines, end=b"\n"):
        path = tmp_path / "chat.jsonl"
        path.write_bytes(end.join(line if isinstance(line, bytes) else line.encode("utf-8") for line in lines))
        return path
    return write


# ---- the three forms ----

@pytest.mark.parametrize("record, messages", [
    ({"prompt": "What is 2 + 3?", "response": "5"}, said("What is 2 + 3?", "5")),
    ({"prompt": "", "response": " x ", "source": 7}, said("", " x ")),  # other keys do not matter, blanks are kept
    ({"instruction": "Sort.", "input": "b a", "output": "a b"}, said("Sort.\n\nb a", "a b")),
    ({"instruction": "Say hi.", "input": "", "output": "hi"}, said("Say hi.", "hi")),
    ({"instruction": "Say hi.", "output": "hi"}, said("Say hi.", "hi")),
    ({"messages": said("a", "b", "c", "d")}, said("a", "b", "c", "d")),
    ({"messages": [{"role": "system", "content": "Be brief."}, *said("a", "b")]},
     [{"role": "system", "content": "Be brief."}, *said("a", "b")]),
    ({"messages": [{"role": "user", "content": "a", "id": 1}, {"content": "b", "role": "assistant"}]}, said("a", "b"))])
def test_each_form_becomes_a_conversation(record, messages, written):
    assert read_messages(record) == messages
    assert load_conversations(written(json.dumps(record))) == [messages]


def test_forms_may_be_mixed_and_empty_lines_are_passed_over(written):
    path = written("", GOOD, "  \t", '{"instruction": "a", "output": "b"}', json.dumps({"messages": said("c", "d")}), "")
    assert load_conversations(path) == [said("What is 2 + 3?", "5"), said("a", "b"), said("c", "d")]
    assert load_conversations(str(path)) == load_conversations(path)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_lines_may_end_as_on_any_system(end, written):
    assert load_conversations(written(GOOD, GOOD, end=end)) == [said("What is 2 + 3?", "5")] * 2


@given(st.lists(st.tuples(st.text(), st.text().filter(str.strip)), min_size=1, max_size=5))
def test_any_text_comes_through_a_file(tmp_path_factory, pairs):
    # ensure_ascii=False leaves U+2028, U+0085 and the like as they are: they end no line of a JSONL file.
    path = tmp_path_factory.mktemp("chat") / "any.jsonl"
    path.write_bytes("\n".join(json.dumps({"prompt": user, "response": answer}, ensure_ascii=False)
                               for user, answer in pairs).encode("utf-8"))
    assert load_conversations(path) == [said(*pair) for pair in pairs]


def test_a_byte_order_mark_may_stand_at_the_beginning_and_nowhere_else(written):
    marked = b"\xef\xbb\xbf" + GOOD.encode()
    assert load_conversations(written(marked, GOOD)) == [said("What is 2 + 3?", "5")] * 2
    with pytest.raises(InputError, match="line 2: no JSON"):
        load_conversations(written(GOOD, marked))


def test_a_turn_by_hand():
    assert turn("a", "b") == [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


def test_lines_are_read_by_whatever_reads_them(written):
    def half(number):
        if number % 2:
            raise ValueError(f"{number} is odd")
        return number // 2

    assert read_lines(written("4", "", "0", "8"), half, "an even number") == [2, 0, 4]  # 0 and "" are records too
    assert read_lines(written('"b"', '""', '"a"'), str, "a text") == ["b", "", "a"]
    with pytest.raises(InputError, match="chat.jsonl, line 2: 3 is odd$"):
        read_lines(written("4", "3", "5"), half, "an even number")
    with pytest.raises(InputError, match="chat.jsonl holds nothing: a line each, an even number$"):
        read_lines(written("", " "), half, "an even number")


# ---- every kind of badness ----

MESSAGE = 'message 1 is no object with "role" and "content", a text'
TEXTS = '"instruction" and "input" must be texts'
BAD = {
    "no JSON": ("what is this", "no JSON .Expecting value at column 1."),
    "cut off": (GOOD[:-1], "no JSON .*column"),
    "two objects": (GOOD + GOOD, "no JSON .Extra data"),
    "nested too deep": ("[" * 100_000, "no JSON"),
    "no UTF-8": (b'{"prompt": "caf\xe9", "response": "x"}', "no UTF-8 .byte 15."),
    "half a surrogate pair": ('{"prompt": "a\\ud83d", "response": "x"}', "message 1 holds half a surrogate pair"),
    "half a pair in the answer": ('{"prompt": "a", "response": "\\udc00"}', "message 2 holds half a surrogate pair"),
    "a list": ('["prompt", "response"]', "no JSON object, but .'prompt'"),
    "a number": ("5", "no JSON object, but 5"),
    "null": ("null", "no JSON object, but None"),
    "a string": ('"prompt"', "no JSON object, but 'prompt'"),
    "no keys": ("{}", 'not those of {"prompt", "response"}, {"instruction", "input", "output"} or {"messages"}'),
    "wrong keys": ('{"question": "a", "answer": "b"}', "'question', 'answer', not those of"),
    "keys of two forms": ('{"prompt": "a", "output": "b"}', "'prompt', 'output', not those of"),
    "no response": ('{"prompt": "a"}', "'prompt', not those of"),
    "no instruction": ('{"input": "a", "output": "b"}', "'input', 'output', not those of"),
    "prompt a number": ('{"prompt": 5, "response": "b"}', MESSAGE),
    "prompt null": ('{"prompt": null, "response": "b"}', MESSAGE),
    "response a list": ('{"prompt": "a", "response": ["b"]}', "message 2 is no object"),
    "instruction a number": ('{"instruction": 5, "output": "b"}', TEXTS),
    "instruction a number beside an input": ('{"instruction": 5, "input": "x", "output": "b"}', TEXTS),
    "input a list": ('{"instruction": "a", "input": ["x"], "output": "b"}', TEXTS),
    "input zero": ('{"instruction": "a", "input": 0, "output": "b"}', TEXTS),
    "output null": ('{"instruction": "a", "output": null}', "message 2 is no object"),
    "empty response": ('{"prompt": "a", "response": ""}', "last message is no answer of the assistant"),
    "blank response": ('{"prompt": "a", "response": " \\n\\t"}', "last message is no answer of the assistant"),
    "empty output": ('{"instruction": "a", "input": "b", "output": ""}', "last message is no answer"),
    "messages empty": ('{"messages": []}', "there are no messages"),
    "messages an object": ('{"messages": {"role": "user", "content": "a"}}', "there are no messages"),
    "messages a text": ('{"messages": "hello"}', "there are no messages"),
    "a message a text": ('{"messages": ["hello"]}', MESSAGE),
    "no content": ('{"messages": [{"role": "user"}]}', MESSAGE),
    "no role": ('{"messages": [{"content": "a"}]}', "message 1 must be of the user, not of None"),
    "roles out of order": (json.dumps({"messages": said("a", "b")[::-1]}),
                           "message 1 must be of the user, not of 'assistant'"),
    "two users": (json.dumps({"messages": said("a", "b")[:1] * 2}), "message 2 must be of the assistant, not of 'user'"),
    "the system later": (json.dumps({"messages": [*said("a", "b"), {"role": "system", "content": "s"}]}),
                         "message 3 must be of the user, not of 'system'"),
    "an unknown role": ('{"messages": [{"role": "human", "content": "a"}]}', "not of 'human'"),
    "ends with the user": (json.dumps({"messages": said("a", "b", "c")}), "last message is no answer of the assistant"),
    "the system alone": ('{"messages": [{"role": "system", "content": "s"}]}', "last message is no answer"),
    "last answer empty": (json.dumps({"messages": said("a", "b", "c", "")}), "last message is no answer"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_line_is_named_by_number_and_reason_in_one_line(kind, written):
    line, complaint = BAD[kind]
    path = written(GOOD, "", line, "also bad")  # an empty line counts, and the first bad line is named
    with pytest.raises(InputError, match=complaint) as caught:
        load_conversations(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line 3: ") and "\n" not in message and len(message) < len(str(path)) + 250


@pytest.mark.parametrize("lines", [(), ("",), ("", "  ", "\t")])
def test_a_file_without_conversations_is_refused_with_the_forms(lines, written):
    path = written(*lines)
    with pytest.raises(InputError, match="holds nothing.*response.*instruction.*messages") as caught:
        load_conversations(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_a_folder_and_a_locked_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="none.jsonl cannot be read .No such file"):
        load_conversations(tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="cannot be read"):
        load_conversations(tmp_path)

    def denied(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.read_bytes", denied)
    with pytest.raises(InputError, match="a.jsonl cannot be read .Permission denied"):
        load_conversations(tmp_path / "a.jsonl")
