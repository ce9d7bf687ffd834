import copy
import hashlib
import importlib.util
import io
import os
import pickle
from pathlib import Path

import pytest
import tiktoken.load
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiktoken._educational import SimpleBytePairEncoding

from part_0.cli import InputError
from part_2.byte_tokenizer import ByteTokenizer
from part_2.dataset import windows_at
from part_4.bpe_tokenizer import BPETokenizer, encode_by_hand, encode_chunk
from part_4.bpe_training import count_chunks, train_bpe
from part_4.text_pieces import GPT2_PATTERN
from tests.repository import ROOT

SPECIAL = ("<|endoftext|>", "<|pad|>")
PROSE = (ROOT / "README.md").read_text(encoding="utf-8")
MERGES, RANKS = train_bpe(count_chunks([PROSE, "  \n\n   \n\n née 你好 👋👋 " * 9]), 700)
TOKENIZER = BPETokenizer.from_merges(MERGES, SPECIAL)
assert TOKENIZER.ranks == RANKS
# Assigned characters: whether a newer one is a letter depends on the Unicode tables of each package's version.
TEXTS = st.lists(st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=12), st.text(" \n\t\xa0\u3000", max_size=6),
    st.sampled_from(["'ll", "I've", "don't", "'S", " the", "the training", *SPECIAL, "<|", "2048", "née", "你好", "👋"]),
)).map("".join)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
@example("a  b   \n\n c \n")
@example("<|endoftext|><|endoftext|> <|pad|>")
def test_any_text_survives_and_has_the_ids_of_the_rule_written_out(text):
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert ids == encode_by_hand(text, TOKENIZER.ranks)
    assert TOKENIZER.encode(text, allow_special=True) == encode_by_hand(text, TOKENIZER.ranks,
                                                                        special_ids=TOKENIZER.special_ids)
    assert TOKENIZER.encode_to_tensor(text).tolist() == ids


@settings(max_examples=50, deadline=None)
@given(TEXTS)
def test_equals_tiktoken_s_own_lesson(text):
    lesson = SimpleBytePairEncoding(pat_str=GPT2_PATTERN, mergeable_ranks=TOKENIZER.ranks)
    assert TOKENIZER.encode(text) == lesson.encode(text, visualise=None)


def test_lowest_worked_by_hand():
    # Ranks: es 256, est 257, low 258. Neither lo nor ow is a token, so low cannot be reached from its letters.
    tokenizer = BPETokenizer.from_merges([(b"e", b"s"), (b"es", b"t"), (b"lo", b"w")], ())
    assert tokenizer.encode("lowest") == [*b"low", 257]
    tokenizer = BPETokenizer.from_merges([(b"e", b"s"), (b"es", b"t"), (b"o", b"w"), (b"l", b"ow")], ())
    assert tokenizer.encode("lowest") == [259, 257] == encode_chunk(b"lowest", tokenizer.ranks)
    # The lowest rank first, not the longest token: with ab before bc, "abc" is ab c; the leftmost first: "aaa" is aa a.
    ranks = BPETokenizer.from_merges([(b"a", b"b"), (b"b", b"c"), (b"a", b"a")], ()).ranks
    assert encode_chunk(b"abc", ranks) == [256, ord("c")] and encode_chunk(b"aaa", ranks) == [258, ord("a")]
    assert encode_chunk(b"", ranks) == []


def test_applying_the_merges_one_after_the_other_gives_the_same():
    for chunk in count_chunks([PROSE]):
        parts = [chunk[i:i + 1] for i in range(len(chunk))]
        for pair in MERGES:
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == pair:
                    parts[i:i + 2] = [parts[i] + parts[i + 1]]
                i += 1
        assert [TOKENIZER.ranks[part] for part in parts] == encode_chunk(chunk, TOKENIZER.ranks)


def test_ids_are_bytes_then_merges_then_special_tokens():
    n = len(MERGES)
    assert TOKENIZER.decode_bytes(range(256)) == bytes(range(256))
    assert TOKENIZER.decode_bytes([256]) == b"".join(MERGES[0]) and TOKENIZER.decode_bytes([255 + n]) == b"".join(MERGES[-1])
    assert TOKENIZER.special_ids == {"<|endoftext|>": 256 + n, "<|pad|>": 257 + n} and TOKENIZER.vocab_size == 258 + n
    assert TOKENIZER.decode([0x61, 257 + n, 0x62]) == "a<|pad|>b"


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.lists(st.integers(0, 300)))
def test_without_merges_it_is_the_byte_tokenizer(text, ids):
    ours, theirs = BPETokenizer.from_merges([], SPECIAL), ByteTokenizer(SPECIAL)
    assert ours.encode(text) == theirs.encode(text)
    assert ours.vocab_size == theirs.vocab_size and ours.special_ids == theirs.special_ids
    assert ours.special_tokens == theirs.special_tokens
    ids = [id % 258 for id in ids]
    assert ours.decode_bytes(ids) == theirs.decode_bytes(ids) and ours.decode(ids) == theirs.decode(ids)


def test_a_special_token_s_name_is_letters_unless_it_is_allowed():
    text = "a<|endoftext|>b"
    assert max(TOKENIZER.encode(text)) < TOKENIZER.special_ids["<|endoftext|>"]
    assert TOKENIZER.encode(text, allow_special=True) == [ord("a"), TOKENIZER.special_ids["<|endoftext|>"], ord("b")]
    assert TOKENIZER.encode_to_tensor(text, allow_special=True).tolist()[1] == TOKENIZER.special_ids["<|endoftext|>"]


def test_the_tensor_is_small_and_can_be_cut_into_windows():
    tokens = TOKENIZER.encode_to_tensor(PROSE)
    assert tokens.dtype == torch.int32 and tokens.ndim == 1
    inputs, targets = windows_at(tokens, torch.tensor([0, 3]), 5)
    assert inputs[1].tolist() == tokens[3:8].tolist() and targets[1].tolist() == tokens[4:9].tolist()
    assert len(TOKENIZER.encode_to_tensor("")) == 0 and TOKENIZER.encode("") == [] and TOKENIZER.decode([]) == ""


@pytest.mark.parametrize("id", [-1, 702])
def test_an_id_outside_the_vocabulary_is_refused(id):
    assert TOKENIZER.vocab_size == 702
    with pytest.raises(ValueError, match=f"{id}.*702"):
        TOKENIZER.decode([id])


def test_half_a_surrogate_pair_is_refused_and_bad_bytes_are_shown():
    with pytest.raises(ValueError, match="half a surrogate pair.*ud83d.*at 2") as error:
        TOKENIZER.encode("ab\ud83d")
    assert not isinstance(error.value, UnicodeError)
    assert TOKENIZER.decode([0x61, 0xC3, 0x62]) == "a\ufffdb"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t)),
                                    lambda t: BPETokenizer.from_state(t.state())], ids=["deepcopy", "pickle", "state"])
def test_a_copy_is_the_same_tokenizer(copied):
    for tokenizer in (TOKENIZER, BPETokenizer(TOKENIZER.ranks, ("<a>",), r"\w+|\W")):
        other = copied(tokenizer)
        assert other is not tokenizer and other.fingerprint() == tokenizer.fingerprint()
        assert other.encode(PROSE, allow_special=True) == tokenizer.encode(PROSE, allow_special=True)
        assert (other.ranks, other.special_ids, other.pattern) == (tokenizer.ranks, tokenizer.special_ids, tokenizer.pattern)


def test_the_state_goes_through_a_checkpoint_that_holds_no_code():
    buffer = io.BytesIO()
    torch.save({"tokenizer": TOKENIZER.state()}, buffer)
    state = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)["tokenizer"]
    assert BPETokenizer.from_state(state).fingerprint() == TOKENIZER.fingerprint()


def test_the_fingerprint_changes_with_all_that_decides_the_ids():
    n, swapped = len(MERGES), dict(TOKENIZER.ranks)
    swapped[b"a"], swapped[b"b"] = swapped[b"b"], swapped[b"a"]
    others = [BPETokenizer.from_merges(MERGES[:n - 1], SPECIAL), BPETokenizer.from_merges(MERGES, SPECIAL[::-1]),
              BPETokenizer.from_merges(MERGES, ()), BPETokenizer.from_merges(MERGES, SPECIAL, GPT2_PATTERN + "|x"),
              BPETokenizer(swapped, SPECIAL)]
    prints = {TOKENIZER.fingerprint(), *(other.fingerprint() for other in others)}
    assert len(prints) == 6 and all(len(bytes.fromhex(each)) == hashlib.sha256().digest_size for each in prints)


def test_saved_and_loaded_in_tiktoken_s_own_format(tmp_path, monkeypatch):
    path = tmp_path / "new" / "mine.tiktoken"
    TOKENIZER.save(path)
    assert sorted(file.name for file in path.parent.iterdir()) == ["mine.json", "mine.tiktoken"]
    monkeypatch.setattr(tiktoken.load, "read_file", lambda name: Path(name).read_bytes())  # older ones need blobfile for it
    assert tiktoken.load.load_tiktoken_bpe(str(path)) == TOKENIZER.ranks
    # base64 of the bytes 00 and 61: AA== and YQ==
    lines = path.read_text().splitlines()
    assert lines[0] == "AA== 0" and lines[0x61] == "YQ== 97" and len(lines) == len(TOKENIZER.ranks)
    loaded = BPETokenizer.load(path)
    assert loaded.fingerprint() == TOKENIZER.fingerprint() and loaded.special_tokens == SPECIAL
    path.with_suffix(".json").unlink()
    alone = BPETokenizer.load(path)
    assert alone.special_tokens == () and alone.pattern == GPT2_PATTERN and alone.ranks == TOKENIZER.ranks


def damage_line(text):
    return text.replace("YQ== 97", "Y*Q== 97")


@pytest.mark.parametrize("damage, words", [
    (damage_line, "line 98"), (lambda text: text.replace("YQ== 97\n", ""), "lacks 1 of the 256 bytes.*0x61"),
    (lambda text: text[:-5], ""), (lambda text: text + "YQ== 700\n", "line 701 .*repeats"),
    (lambda text: text.rsplit("\n", 2)[0] + "\n", "fingerprints"), (lambda text: text.replace(" 97\n", " 98\n"), "0 to 699"),
    (lambda text: text.replace(" 97\n", " x\n"), "line 98"), (lambda text: text + "ÿ", ""), (lambda text: "", "lacks 256")])
def test_a_damaged_file_is_refused_in_one_line(tmp_path, damage, words):
    path = tmp_path / "mine.tiktoken"
    TOKENIZER.save(path)
    path.write_text(damage(path.read_text()), encoding="latin-1")
    with pytest.raises(InputError, match=f"mine.tiktoken is damaged.*{words}") as error:
        BPETokenizer.load(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [
    "", "[]", "{}", '{"pattern": 3, "special_tokens": []}', '{"pattern": "(", "special_tokens": []}',
    '{"pattern": "a", "special_tokens": 7}', '{"pattern": "a", "special_tokens": ["a b"]}'])
def test_a_damaged_json_is_refused_in_one_line(tmp_path, content):
    path = tmp_path / "mine.tiktoken"
    TOKENIZER.save(path)
    path.with_suffix(".json").write_text(content)
    with pytest.raises(InputError, match="mine.tiktoken is damaged") as error:
        BPETokenizer.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_names_what_makes_one_and_other_names_are_refused(tmp_path):
    with pytest.raises(InputError, match="there is no tokenizer.*python3 part_4/train_tokenizer.py"):
        BPETokenizer.load(tmp_path / "none.tiktoken")
    for call in (TOKENIZER.save, BPETokenizer.load):
        with pytest.raises(InputError, match="NAME.tiktoken, not 'x.json'"):
            call(tmp_path / "x.json")
    assert not list(tmp_path.iterdir())


def test_ranks_with_gaps_or_without_all_bytes_are_refused():
    whole = {bytes([i]): i for i in range(256)}
    BPETokenizer(whole)
    with pytest.raises(ValueError, match="lacks 2 of the 256 bytes.*0x0a"):
        BPETokenizer({token: rank for token, rank in whole.items() if token not in (b"\n", b"\xff")})
    with pytest.raises(ValueError, match="0 to 256"):
        BPETokenizer({**whole, b"ab": 257})
    with pytest.raises(ValueError, match="0 to 256"):
        BPETokenizer({**whole, b"ab": 7})
    with pytest.raises(ValueError, match="special token"):
        BPETokenizer(whole, ("<a>", "<a>"))


def gpt2_ranks():
    """GPT-2's published ranks: the file that GPT2_RANKS names, or the one in the installed package openai-whisper."""
    if "GPT2_RANKS" in os.environ:
        return Path(os.environ["GPT2_RANKS"])
    found = importlib.util.find_spec("whisper")
    path = Path(found.origin).parent / "assets" / "gpt2.tiktoken" if found and found.origin else None
    return path if path and path.is_file() else None


@pytest.mark.skipif(gpt2_ranks() is None, reason="GPT-2's ranks: neither GPT2_RANKS=FILE nor the package openai-whisper")
def test_gpt2_s_published_ranks_give_gpt2_s_ids():
    tokenizer = BPETokenizer.load(gpt2_ranks())
    assert len(tokenizer.ranks) == 50256 and tokenizer.encode("!") == [0]  # its bytes are in an order of its own
    assert tokenizer.encode("Hello world") == [15496, 995] == encode_by_hand("Hello world", tokenizer.ranks)
    with_end = BPETokenizer(tokenizer.ranks)
    assert with_end.special_ids == {"<|endoftext|>": 50256} and with_end.vocab_size == 50257
    assert tokenizer.decode(tokenizer.encode(PROSE)) == PROSE
    assert tokenizer.encode(PROSE) == encode_by_hand(PROSE, tokenizer.ranks)
