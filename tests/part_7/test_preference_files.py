import collections
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from part_0.cli import InputError
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_6.prompt_template import chat_tokenizer
from part_7.preference_data import Pair, Response
from part_7.preference_files import as_line, load_preferences, read_dialogue, read_pair
from part_7.train_reward_model import encode_pairs
from tests.part_2.test_tinyworld import CHANCE_999, chi_squared
from tests.part_6.tiny_base import WORLD, write_lines

GOOD = '{"prompt": "What is 2 + 3?", "chosen": "5", "rejected": "6"}'


def said(*contents):
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def dialogue(*contents):
    """A dialogue of HH-RLHF's form."""
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {content}" for i, content in enumerate(contents))


@pytest.fixture
def written(tmp_path):
    """A function that writes lines (str or bytes) to a file and gives its path."""
    def write(*lines, end=b"\n"):
        path = tmp_path / "mine.jsonl"
        path.write_bytes(end.join(line if isinstance(line, bytes) else line.encode("utf-8") for line in lines))
        return path
    return write


def all_pairs(path):
    parts, dropped = load_preferences(path)
    return [pair for own in parts.values() for pair in own], dropped


# ---- the two forms ----

def test_the_first_form():
    pair = read_pair(json.loads(GOOD))
    assert pair == Pair(said("What is 2 + 3?"), Response("5", True), Response("6", True), "file", "")
    kept = read_pair({"prompt": " a\n", "chosen": " b ", "rejected": "", "id": 7})  # blanks stay, other keys do not matter
    assert kept == Pair(said(" a\n"), Response(" b "), Response(""))
    more = read_pair({"prompt": "a", "chosen": "b", "rejected": "c", "rejected_ended": False, "source": "policy",
                      "family": "x"})
    assert more == Pair(said("a"), Response("b", True), Response("c", False), "policy", "x")
    assert read_pair({"prompt": "a", "chosen": "b", "rejected": "b", "chosen_ended": False}).chosen == Response("b", False)


def test_the_second_form_with_one_turn_and_with_several():
    one = {"chosen": dialogue("Hi?", "Hello."), "rejected": dialogue("Hi?", "Go away.")}
    assert read_pair(one) == Pair(said("Hi?"), Response("Hello."), Response("Go away."))
    several = {"chosen": dialogue("a", "b", "c", "d", "e", "f"), "rejected": dialogue("a", "b", "c", "d", "e", "g h")}
    assert read_pair(several) == Pair(said("a", "b", "c", "d", "e"), Response("f"), Response("g h"))


def test_dialogues_as_they_are_found():
    assert read_dialogue("\n\nHuman: Hi?\n\nAssistant: Hello.") == said("Hi?", "Hello.")
    assert read_dialogue("\n\nHuman: Hi? \n\nAssistant:  Hello.\n") == said("Hi?", "Hello.")  # outer blanks go
    assert read_dialogue("\n\nHuman: Hi?\n\nAssistant:") == said("Hi?", "")  # an assistant who is silent
    # A paragraph is no turn, nor is a speaker's name amid a line or after a single line break.
    text = "What did she say?\n\nAnd: why?\nHuman: all too human. Assistant: who?"
    assert read_dialogue(dialogue(text, "One.\n\nTwo.")) == said(text, "One.\n\nTwo.")


@pytest.mark.parametrize("chosen, rejected, reason", [
    (dialogue("a", "b"), dialogue("a", "b"), "equal"),
    (dialogue("a", "b", "c", "d"), dialogue("a", "b", "c", "d "), "equal"),
    (dialogue("a", "b"), dialogue("x", "c"), "part early"),
    (dialogue("a", "b", "c", "d"), dialogue("a", "x", "c", "e"), "part early"),
    (dialogue("a", "b", "c", "d"), dialogue("a", "b"), "part early"),
    (dialogue("a", "b", "c", "d"), dialogue("a", "x", "c", "d"), "part early")])  # the last answers are the same
def test_dialogues_that_make_no_pair(chosen, rejected, reason):
    assert read_pair({"chosen": chosen, "rejected": rejected}) == reason


def test_what_makes_no_pair_is_dropped_and_counted(written):
    equal = json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"})
    early = json.dumps({"chosen": dialogue("a", "b"), "rejected": dialogue("c", "d")})
    pairs, dropped = all_pairs(written(equal, GOOD, early, equal, "", equal))
    assert pairs == [read_pair(json.loads(GOOD))] and dropped == {"equal": 3, "part early": 1}
    assert all_pairs(written(GOOD)) == (pairs, {})
    assert load_preferences(written(equal, equal)) == ({"train": [], "val": [], "test": []}, {"equal": 2})


def test_answers_that_are_equal_but_for_their_end_are_a_pair(written):
    line = json.dumps({"prompt": "a", "chosen": "b", "rejected": "b", "rejected_ended": False})
    assert all_pairs(written(line)) == ([Pair(said("a"), Response("b", True), Response("b", False))], {})


def test_both_forms_may_be_mixed_and_a_byte_order_mark_is_passed_over(written):
    other = {"chosen": dialogue("Grüße?", "ja ☺"), "rejected": dialogue("Grüße?", "nein")}
    lines = GOOD, json.dumps(other, ensure_ascii=False)
    expected = {"What is 2 + 3?": "5", "Grüße?": "ja ☺"}
    for path in (written(*lines), written(b"\xef\xbb\xbf" + lines[0].encode(), "", lines[1], end=b"\r\n")):
        pairs, dropped = all_pairs(path)
        assert {pair.prompt[0]["content"]: pair.chosen.text for pair in pairs} == expected and dropped == {}


# ---- what is refused ----

@pytest.mark.parametrize("line, reason", [
    ("{", "no JSON"), (b"\xff", "no UTF-8"), ('"a"', "no JSON object, but 'a'"), ("[1]", r"no JSON object, but \[1\]"),
    ("{}", '"chosen" and "rejected" must be texts; the forms are'),
    ('{"prompt": "a", "chosen": "b"}', '"chosen" and "rejected" must be texts'),
    ('{"prompt": "a", "chosen": "b", "rejected": 3}', '"chosen" and "rejected" must be texts'),
    ('{"prompt": "a", "chosen": null, "rejected": "b"}', '"chosen" and "rejected" must be texts'),
    ('{"prompt": 1, "chosen": "a", "rejected": "b"}', '"prompt" must be a text'),
    ('{"prompt": null, "chosen": "a", "rejected": "b"}', '"prompt" must be a text'),
    (r'{"prompt": "a", "chosen": "b", "rejected": "\ud800"}', "message 2 holds half a surrogate"),
    (r'{"prompt": "a", "chosen": "\ud800", "rejected": "b"}', "message 2 holds half a surrogate"),
    ('{"chosen": "a", "rejected": "b"}', 'a dialogue is .*Human: .*, not \'a\''),
    (json.dumps({"chosen": dialogue("a"), "rejected": dialogue("a", "b")}), "a dialogue is"),
    (json.dumps({"chosen": dialogue("a", "b"), "rejected": dialogue("a", "b", "c")}), "a dialogue ends with the assistant"),
    (json.dumps({"chosen": "Hi! " + dialogue("a", "b"), "rejected": dialogue("a", "c")}), "a dialogue is .* not 'Hi!"),
    (json.dumps({"chosen": "\n\nAssistant: a\n\nHuman: b\n\nAssistant: c", "rejected": dialogue("a", "b")}),
     "message 1 must be of the user")])
def test_the_first_bad_line_is_named_with_the_reason(line, reason, written):
    path = written(GOOD, "", line, "{")
    with pytest.raises(InputError, match=f"mine.jsonl, line 3: .*{reason}"):
        load_preferences(path)


@pytest.mark.parametrize("more", [
    {"chosen_ended": 3}, {"rejected_ended": "no"}, {"chosen_ended": None}, {"source": ["x"]}, {"family": 3}])
def test_ended_source_and_family_of_the_wrong_type_are_refused(more):
    with pytest.raises(ValueError, match="must be"):
        read_pair({"prompt": "a", "chosen": "b", "rejected": "c", **more})


@pytest.mark.parametrize("content", [b"", b"\n \n\t\n"])
def test_a_file_with_nothing_in_it_is_refused_with_the_forms(content, written):
    with pytest.raises(InputError, match='holds nothing: a line each, {"prompt", "chosen", "rejected"} or dialogues'):
        load_preferences(written(content))


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="none.jsonl cannot be read"):
        load_preferences(tmp_path / "none.jsonl")


# ---- splits ----

def test_pairs_of_one_prompt_are_in_one_split_whatever_the_form(tmp_path):
    records = []
    for i in range(300):
        records += [{"prompt": f"question {i}", "chosen": "a", "rejected": "b"},
                    {"chosen": dialogue(f"question {i}", "c"), "rejected": dialogue(f"question {i}", "d")},
                    {"prompt": f"question {i}", "chosen": "e", "rejected": "f", "source": "x"}]
    parts, _ = load_preferences(write_lines(tmp_path / "mine.jsonl", records))
    prompts = {split: collections.Counter(pair.prompt[0]["content"] for pair in own) for split, own in parts.items()}
    assert list(prompts) == ["train", "val", "test"] and all(prompts.values())
    assert all(n == 3 for own in prompts.values() for n in own.values())
    assert sum(len(own) for own in prompts.values()) == len(set().union(*prompts.values())) == 300


def test_a_prompt_of_several_turns_is_placed_by_all_of_them(tmp_path):
    # The first turn is the same in all: by it alone they would be in one split.
    records = [{"chosen": dialogue("Hi?", "Hello.", f"question {i}", "a"),
                "rejected": dialogue("Hi?", "Hello.", f"question {i}", "b")} for i in range(200)]
    parts, _ = load_preferences(write_lines(tmp_path / "mine.jsonl", records))
    assert min(map(len, parts.values())) > 0


def test_the_splits_are_85_5_and_10_per_cent_by_a_hash_of_the_prompt(tmp_path):
    n = 3000
    records = [{"prompt": f"question {i}", "chosen": "a", "rejected": "b"} for i in range(n)]
    parts, _ = load_preferences(write_lines(tmp_path / "mine.jsonl", records))
    counts = {split: len(own) for split, own in parts.items()}
    assert chi_squared(counts, {"train": 0.85, "val": 0.05, "test": 0.1}) < CHANCE_999[2]
    for split, own in parts.items():
        for pair in own:  # lesson 6.1's ruler: train to 0.7, val to 0.75, test to 0.85, and its rl is for training here
            digest = hashlib.sha256(json.dumps(pair.prompt).encode()).hexdigest()
            place = int(digest[:16], 16) / 2**64
            assert split == ("val" if 0.7 <= place < 0.75 else "test" if 0.75 <= place < 0.85 else "train")


# ---- written and read again ----

RESPONSES = st.builds(Response, st.text(min_size=1), st.booleans())


@given(st.text(min_size=1), RESPONSES, RESPONSES, st.sampled_from(["policy", "file", "x"]), st.sampled_from(["", "add"]))
def test_a_line_comes_back_as_the_pair_it_was(prompt, chosen, rejected, source, family):
    pair = Pair(said(prompt), chosen, rejected, source, family)
    line = as_line(pair)
    assert "\n" not in line and read_pair(json.loads(line)) == ("equal" if chosen == rejected else pair)


def test_an_empty_answer_or_prompt_comes_back():
    for pair in (Pair(said("a"), Response("b"), Response("")), Pair(said("a"), Response(""), Response("b")),
                 Pair(said("a"), Response("", False), Response("")), Pair(said(""), Response("b"), Response("c"))):
        assert read_pair(json.loads(as_line(pair))) == pair


def test_a_line_by_hand():
    pair = Pair(said("a"), Response("b", False), Response("c"), "policy", "story")
    assert json.loads(as_line(pair)) == {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_ended": False,
                                         "source": "policy", "family": "story"}


def test_lines_of_many_pairs_come_back_through_a_file(tmp_path):
    pairs = [Pair(said(f"Sort: {i}"), Response(f"a\n{i}", i % 3 > 0), Response("ä\u2028", i % 2 > 0), "policy", "sort")
             for i in range(200)]
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(as_line(pair) + "\n" for pair in pairs), encoding="utf-8")
    parts, dropped = load_preferences(path)
    back = {pair.prompt[0]["content"]: pair for own in parts.values() for pair in own}
    assert [back[pair.prompt[0]["content"]] for pair in pairs] == pairs and len(back) == 200 and dropped == {}


# ---- too long ----

def test_a_pair_that_is_the_same_within_the_block_is_dropped_and_counted():
    tokenizer = chat_tokenizer(BPETokenizer(train_bpe(count_chunks([WORLD]), 300, 1)[1]))
    early = Pair(said("Who?"), Response("Tom" + " and Ann" * 50), Response("Ben" + " and Ann" * 50))  # differ at the left
    late = Pair(said("Who?"), Response("Ann and " * 50 + "Tom"), Response("Ann and " * 50 + "Ben"))
    kept, n_dropped = encode_pairs([early, late], tokenizer, 16)
    assert n_dropped == 1 and [len(ids) for ids, _ in kept[0]] == [16, 16]
    assert [tokenizer.decode(ids[:-1])[-4:] for ids, _ in kept[0]] == [" Tom", " Ben"]
    assert encode_pairs([early, late], tokenizer, 10_000)[1] == 0


def test_two_turns_of_one_speaker_in_a_row_become_one():
    record = {"chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d", "rejected": dialogue("a\n\nb", "e")}
    pair = read_pair(record)
    assert pair.prompt == [{"role": "user", "content": "a\n\nb"}]
    assert pair.chosen.text == "c\n\nd" and pair.rejected.text == "e"
