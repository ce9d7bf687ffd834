import dataclasses
import io
import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_0.cli import InputError
from part_2.checkpoint import save_checkpoint
from part_6 import chat
from part_6.chat import Config, fit_history, main, read_lines, show, talk, whole_characters, without_blank
from part_6.prompt_template import encode_prompt
from tests.part_6.test_evaluation import ASSISTANT_ID, BASE, END_ID, SIZES, TOKENIZER, random_model, scripted_model
from tests.repository import ROOT, WARNINGS_ARE_ERRORS

SCRIPT = [ASSISTANT_ID, *" hé☺!".encode(), END_ID]
BYTES = st.lists(st.integers(0, 255))


def config(**changes):
    return Config(**{"checkpoint": "none", "temperature": 0.0, "device": "cpu", **changes})


def turns(*texts, system=None):
    """A conversation of these texts, the user's first."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def save(path, model, tokenizer, **flags):
    save_checkpoint(path, {"step": 1, "model": model.state_dict(), "model_config": dataclasses.asdict(model.config),
                           "tokenizer": tokenizer.state(), "config": flags})
    return str(path)


def run(*words, questions):
    """What chat.py prints, its questions coming through a pipe."""
    result = subprocess.run([sys.executable, *WARNINGS_ARE_ERRORS, "part_6/chat.py", "--device", "cpu", *words], cwd=ROOT,
                            input=questions, capture_output=True, timeout=120)
    assert result.returncode == 0 and not result.stderr, result.stderr
    return result.stdout.decode("utf-8").replace("\r\n", "\n")


@pytest.fixture
def asked(monkeypatch):
    """A `stream` that says "ok"; what it was given: ids, most new tokens, temperature, top_k and top_p of each call."""
    calls = []

    def stream(model, prompts, n_new, temperature, top_k, top_p, generator, stop_ids):
        calls.append((prompts[0], n_new, temperature, top_k, top_p))
        assert END_ID in stop_ids
        yield from (torch.tensor([id]) for id in [*b" ok", END_ID][:n_new])

    monkeypatch.setattr(chat, "stream", stream)
    return calls


# --- Characters ------------------------------------------------------------------------------------------------------

def test_a_character_comes_with_its_last_byte():
    drawn = []

    def ids():
        for byte in "aé☺".encode():
            drawn.append(byte)
            yield byte

    seen = [(piece, len(drawn)) for piece in whole_characters(ids(), BASE)]
    assert seen == [("a", 1), ("é", 3), ("☺", 6)]


def test_an_unfinished_character_is_shown_as_such_at_the_end():
    assert list(whole_characters([*b"a", *"☺".encode()[:2]], BASE)) == ["a", "\ufffd"]


@given(st.text())
def test_each_character_of_a_text_is_one_piece_when_its_bytes_are_tokens(text):
    assert list(whole_characters(BASE.encode(text), BASE)) == list(text)


@given(BYTES)
def test_all_pieces_together_are_the_decoded_text_whatever_the_bytes(ids):
    pieces = list(whole_characters(ids, BASE))
    assert "".join(pieces) == BASE.decode(ids) and "" not in pieces


def test_only_the_template_s_blank_is_taken_off():
    assert "".join(without_blank(iter([" ", " a", " b"]))) == " a b"
    assert "".join(without_blank(iter([" a", " b"]))) == "a b"
    assert "".join(without_blank(iter(["  a"]))) == " a"
    assert "".join(without_blank(iter(["a", " b"]))) == "a b"


def test_control_characters_do_not_reach_the_terminal(capsys):
    pieces = (piece for piece in ("a\x1b[2J", "\tb\n\x07é\x9b"))
    assert show(pieces) == "a\x1b[2J\tb\n\x07é\x9b"  # the text itself stays as it is
    assert capsys.readouterr().out == "a\ufffd[2J\tb\n\ufffdé\ufffd\n"


# --- History ---------------------------------------------------------------------------------------------------------

def test_history_goes_from_the_oldest_turn_on_and_whole():
    messages = turns("one", "1", "two", "2", "three")
    # A message has its letters, a role, a blank and an end: "three" and the role of the answer are 8 + 1 tokens,
    # "two" and "2" 10 more, "one" and "1" again 10.
    for room, start in ((29, 0), (28, 2), (19, 2), (18, 4), (9, 4), (1, 4)):
        kept, ids = fit_history(messages, TOKENIZER, room)
        assert kept == messages[start:] and ids == encode_prompt(kept, TOKENIZER)


def test_at_most_so_many_turns_are_kept():
    messages = turns("one", "1", "two", "2", "three", system="s")
    for n, start in ((0, 5), (1, 3), (2, 1), (9, 1)):
        assert fit_history(messages, TOKENIZER, 1000, n)[0] == [messages[0], *messages[start:]]
    assert fit_history(messages, TOKENIZER, 19 + 4, 2)[0] == [messages[0], *messages[3:]]  # "s" has 4 tokens, the rest 19


def test_the_system_s_message_stays():
    messages = turns("one", "1", "two", system="Be brief.")
    assert fit_history(messages, TOKENIZER, 10**6)[0] == messages
    assert fit_history(messages, TOKENIZER, 1)[0] == turns("two", system="Be brief.")


@given(st.lists(st.text("ab", max_size=6), min_size=1, max_size=9).filter(lambda texts: len(texts) % 2),
       st.integers(0, 80), st.sampled_from([None, "s"]))
def test_as_much_history_is_kept_as_fits(texts, room, system):
    candidates = [turns(*texts[start:], system=system) for start in range(0, len(texts), 2)]
    fitting = [messages for messages in candidates if len(encode_prompt(messages, TOKENIZER)) <= room]
    assert fit_history(candidates[0], TOKENIZER, room)[0] == (fitting or candidates[-1:])[0]


# --- The conversation ------------------------------------------------------------------------------------------------

def test_the_model_reads_the_conversation_and_reset_forgets_it(asked, capsys):
    messages = talk(["one", "", "two", "/reset", "three"], random_model(), TOKENIZER, 128, config(system="Be brief."))
    expected = [turns("one", system="Be brief."), turns("one", "ok", "two", system="Be brief."),
                turns("three", system="Be brief.")]
    assert [ids for ids, *_ in asked] == [encode_prompt(messages, TOKENIZER) for messages in expected]
    assert messages == turns("three", "ok", system="Be brief.")
    assert capsys.readouterr().out == "ok\nok\nthe conversation begins anew\nok\n"


def test_without_turns_each_question_is_read_alone(asked):
    messages = talk(["one", "two"], random_model(), TOKENIZER, 128, config(turns=0))
    assert [ids for ids, *_ in asked] == [encode_prompt(text, TOKENIZER) for text in ("one", "two")]
    assert messages == turns("two", "ok")


def test_the_temperature_changes_by_command_and_only_to_one_that_there_is(asked, capsys):
    lines = ["a", "/temperature 0.25", "b", "/temperature -1", "/temperature", "/temperature nan", "/temperature x", "c"]
    talk(lines, random_model(), TOKENIZER, 128, config(temperature=1.0, top_k=3, top_p=0.5))
    assert [rest for _, _, *rest in asked] == [[1.0, 3, 0.5], [0.25, 3, 0.5], [0.25, 3, 0.5]]
    out = capsys.readouterr().out
    assert out.count("/temperature needs a number, 0 or above") == 4 and "the temperature is 0.25\n" in out


def test_quit_ends_and_other_commands_are_no_questions(asked, capsys):
    lines = iter(["/help", "/wat now", "/quit", "after"])
    assert talk(lines, random_model(), TOKENIZER, 128, config()) == [] and asked == []
    assert list(lines) == ["after"]
    out = capsys.readouterr().out
    assert all(name in out for name in ("/reset", "/temperature", "/quit", "no command /wat"))


def test_the_oldest_turn_goes_when_history_and_answer_do_not_fit(asked):
    whole = turns("one", "ok", "two", "ok", "six")
    room = len(encode_prompt(whole, TOKENIZER))
    for spare, third in ((0, whole), (-1, whole[2:])):
        asked.clear()
        talk(["one", "two", "six"], random_model(), TOKENIZER, room + spare + 20, config(n_new=20))
        assert [ids for ids, *_ in asked] == [encode_prompt(messages, TOKENIZER)
                                              for messages in (turns("one"), turns("one", "ok", "two"), third)]
        assert [n_new for _, n_new, *_ in asked] == [20, 20, 20]


def test_half_of_the_context_is_for_the_conversation_however_long_answers_may_be(asked):
    messages = turns("one", "ok", "two")
    room = len(encode_prompt(messages, TOKENIZER))
    talk(["one", "two"], random_model(), TOKENIZER, 2 * room, config(n_new=1000))
    assert asked[1][:2] == (encode_prompt(messages, TOKENIZER), room)  # the answer gets what is left


def test_a_question_longer_than_the_context_is_refused_and_forgotten(asked, capsys):
    fixed = len(encode_prompt("", TOKENIZER))
    lines = ["one", "x" * (40 - fixed), "x" * (39 - fixed), "two"]
    messages = talk(lines, random_model(), TOKENIZER, 40, config(n_new=5))
    assert "that is 40 tokens; the model was trained to read 40" in capsys.readouterr().out
    assert [n_new for _, n_new, *_ in asked] == [5, 1, 5] and messages[-2:] == turns("two", "ok")
    assert "x" * (40 - fixed) not in [message["content"] for message in messages]


def test_an_answer_ends_at_any_special_token(capsys):
    for name in ("<|endoftext|>", "<|system|>", "<|user|>", "<|end|>"):
        model = scripted_model([ASSISTANT_ID, *b" a", TOKENIZER.special_ids[name], *b"b"])
        assert talk(["?"], model, TOKENIZER, 128, config()) == turns("?", "a")
    assert capsys.readouterr().out == "a\n" * 4


def test_an_answer_is_printed_as_it_is_drawn(monkeypatch):
    seen = []

    def stream(*arguments):
        for byte in b" abc":
            yield torch.tensor([byte])
            seen.append(out.getvalue()[:out.flushed])

    class Held(io.StringIO):  # as a pipe or a file, where nothing arrives before it is flushed
        flushed = 0

        def flush(self):
            self.flushed = self.tell()

    monkeypatch.setattr(chat, "stream", stream)
    monkeypatch.setattr(sys, "stdout", out := Held())
    talk(["?"], random_model(), TOKENIZER, 128, config())
    assert seen == ["", "a", "ab", "abc"]


@pytest.mark.parametrize("where", ["while drawing", "while printing"])
def test_ctrl_c_stops_the_answer_and_not_the_chat(where, monkeypatch, capsys):
    closed, interrupted = [], []

    def stream(*arguments):
        try:
            yield torch.tensor([ord(" ")])
            yield torch.tensor([ord("a")])
            if where == "while drawing" and not closed:
                raise KeyboardInterrupt
            yield torch.tensor([ord("b")])
        finally:
            closed.append(True)

    def translate(character, category=chat.unicodedata.category):
        if where == "while printing" and character == "b" and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        return category(character)

    monkeypatch.setattr(chat, "stream", stream)
    monkeypatch.setattr(chat.unicodedata, "category", translate)
    messages = talk(["one", "two"], random_model(), TOKENIZER, 128, config())
    first = "a" if where == "while drawing" else "ab"
    assert messages == turns("one", first, "two", "ab") and closed == [True, True]
    assert capsys.readouterr().out == "a ... stopped\nab\n"


def test_draws_are_a_function_of_the_seed(capsys):
    model = random_model()
    first, again, other = (talk(["a", "b"], model, TOKENIZER, 128, config(temperature=1.0, seed=seed, n_new=20))
                           for seed in (1, 1, 2))
    assert first == again != other


# --- The script ------------------------------------------------------------------------------------------------------

def test_questions_of_a_flag_are_answered_one_after_the_other(tmp_path, capsys):
    path = save(tmp_path / "sft.pt", scripted_model(SCRIPT), TOKENIZER)
    main(config(checkpoint=path, prompt="Who?|And now?"))
    assert capsys.readouterr().out.splitlines()[1:] == ["> Who?", "hé☺!", "> And now?", "hé☺!"]


def test_the_context_is_what_fine_tuning_made_it(tmp_path, capsys):
    model = scripted_model(SCRIPT, block_size=20)
    for flags, context in (({}, 20), (dict(block_size=50), 50), (dict(block_size=10), 20)):
        main(config(checkpoint=save(tmp_path / "sft.pt", model, TOKENIZER, **flags), prompt="Who?"))
        assert f"reads {context} tokens" in capsys.readouterr().out
    table = random_model(dataclasses.replace(SIZES, positions="learned", block_size=20))
    main(config(checkpoint=save(tmp_path / "sft.pt", table, TOKENIZER, block_size=50), prompt="Who?"))
    assert "reads 20 tokens" in capsys.readouterr().out


def test_a_pipe_is_read_to_its_end(tmp_path):
    path = save(tmp_path / "sft.pt", scripted_model(SCRIPT, block_size=256), TOKENIZER)
    head, *lines = run("--checkpoint", path, questions=b"Who?\r\n\n/temperature 0\nAnd \xff now?").splitlines()
    assert "256 tokens" in head
    assert lines == ["> Who?", "hé☺!", "> ", "> /temperature 0", "the temperature is 0", "> And \ufffd now?", "hé☺!"]


def test_a_base_model_goes_on_with_each_text_by_itself(tmp_path, monkeypatch, capsys):
    path = save(tmp_path / "base.pt", scripted_model([*b"abcd"], BASE), BASE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"xa\nb\n")))
    main(config(checkpoint=path, n_new=5))
    head, *lines = capsys.readouterr().out.splitlines()
    assert "base model" in head and lines == ["> xa", "bcddd", "> b", "cdddd"]


def test_a_base_model_has_no_system_message(tmp_path):
    path = save(tmp_path / "base.pt", scripted_model([*b"abcd"], BASE), BASE)
    with pytest.raises(InputError, match=r"base model.*python3 part_6/train_sft\.py"):
        main(config(checkpoint=path, system="Be brief.", prompt="x"))


@pytest.mark.parametrize("flags", [dict(prompt="a||b"), dict(prompt=" "), dict(temperature=-1.0), dict(top_k=0),
                                   dict(top_p=0.0), dict(n_new=0), dict(turns=-1), dict(system="\udcff"),
                                   dict(prompt="\udcff")])
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(InputError):
        config(**flags)


def test_a_terminal_is_asked_until_ctrl_d(monkeypatch, capsys):
    typed = iter(["one", "two"])

    def ask(prompt):
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    stdin = io.StringIO("never read")
    monkeypatch.setattr(stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", stdin)
    monkeypatch.setattr("builtins.input", ask)
    assert list(read_lines("")) == ["one", "two"]
    assert capsys.readouterr().out == ""  # what was typed stands there already
    assert list(read_lines("a|b ")) == ["a", "b"] and capsys.readouterr().out == "> a\n> b\n"


@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT to one process")
def test_ctrl_c_in_a_running_chat(tmp_path):
    n_new = 10**5
    endless = scripted_model([ASSISTANT_ID, *b" a"], block_size=2 * n_new)
    path = save(tmp_path / "sft.pt", endless, TOKENIZER)
    words = ["part_6/chat.py", "--checkpoint", path, "--n_new", str(n_new), "--temperature", "0", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, *words], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE,  # a background job hands on that Ctrl-C is ignored: undone here
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        process.stdin.write(b"go on\n")
        process.stdin.flush()
        while process.stdout.readline() != b"> go on\n":
            pass
        assert process.stdout.read(3) == b"aaa"
        process.send_signal(signal.SIGINT)
        rest = process.stdout.readline().decode()
        assert rest.endswith(" ... stopped\n") and set(rest.removesuffix(" ... stopped\n")) <= {"a"} and len(rest) < n_new
        out, error = process.communicate(b"/temperature 1\n", timeout=60)
        assert out == b"> /temperature 1\nthe temperature is 1\n" and error == b"" and process.returncode == 0
    finally:
        process.kill()
        process.communicate()
