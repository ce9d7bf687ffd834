import io
import random
import subprocess
import sys
from collections import Counter

import pytest
import regex
from hypothesis import example, given, settings
from hypothesis import strategies as st

from part_0.cli import InputError
from part_4.bpe_training import count_chunks, count_file, train_bpe
from part_4.text_pieces import CUT, GPT2_PATTERN, check_special_tokens, file_spans, read_pieces, split_at_names
from tests.repository import ROOT

# The pattern as GPT-2's encoder.py has it.
ORIGINAL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Whitespace of all kinds, what the pattern treats apart, and bytes like theirs (U+4E05 ends in 85, U+3200 begins with e3).
SIGNS = " \n\t\r\x0b\x0c\x1c\x1f\x85\xa0\u1680\u2003\u2028\u202f\u205f\u3000" + "ab1é½.'丅㈀\u2010\u200b👋" + "stre"
TEXTS = st.text(st.one_of(st.sampled_from(SIGNS), st.sampled_from("  \nab'."), st.characters(exclude_categories=["Cs"])))


def merges_of(*arguments, **options):
    return train_bpe(*arguments, **options)[0]


def test_the_ranks_beside_the_merges_number_the_bytes_and_then_the_merges():
    merges, ranks = train_bpe({b"aaabdaaabac": 1}, 300)
    assert merges == [(b"a", b"a"), (b"aa", b"a"), (b"aaa", b"b")]
    assert ranks == {**{bytes([i]): i for i in range(256)}, b"aa": 256, b"aaa": 257, b"aaab": 258}



def naive_bpe(chunk_counts, n_merges):
    """Everything counted anew for each merge, on lists of bytes."""
    words = [([chunk[i:i + 1] for i in range(len(chunk))], count) for chunk, count in chunk_counts.items()]
    merges = []
    while len(merges) < n_merges:
        pairs = Counter()
        for word, count in words:
            for i in range(len(word) - 1):
                pairs[word[i], word[i + 1]] += count
        if not pairs:
            break
        count, pair = max((count, pair) for pair, count in pairs.items())
        if count < 2:
            break
        merges.append(pair)
        for word, _ in words:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == pair:
                    word[i:i + 2] = [word[i] + word[i + 1]]
                i += 1
    return merges


def test_a_corpus_worked_by_hand():
    # Sennrich et al. (2016), figure 1, without their end-of-word sign: low x5, lower x2, newest x6, widest x3.
    # Pairs: es 9, st 9 -> of equals the greater: s t. Then e+st 9 -> est. Then lo 7, ow 7 -> o w, then l+ow 7.
    # Now ne 6, ew 6, w+est 6, and w is the greatest: w est. Then ne 6, e+west 6, and n is greater: n e. Then ne+west 6.
    counts = {b"low": 5, b"lower": 2, b"newest": 6, b"widest": 3}
    assert merges_of(counts, 256 + 7) == [(b"s", b"t"), (b"e", b"st"), (b"o", b"w"), (b"l", b"ow"), (b"w", b"est"),
                                          (b"n", b"e"), (b"ne", b"west")]


def test_overlapping_pairs_worked_by_hand():
    # "aaabdaaabac": aa 4 (at 0, 1, 5, 6), ab 2. Merged from the left: Z a b d Z a b a c with Z = aa. Then Za 2, ab 2: the
    # first token decides, and "aa" is greater than "a": Za. Y b d Y b a c: Yb 2. Nothing else occurs twice.
    assert merges_of({b"aaabdaaabac": 1}, 300) == [(b"a", b"a"), (b"aa", b"a"), (b"aaa", b"b")]
    # aaaa: aa 3, then (aa)(aa) occurs once; twice if the chunk does.
    assert merges_of({b"aaaa": 1}, 300) == [(b"a", b"a")]
    assert merges_of({b"aaaa": 2}, 300) == [(b"a", b"a"), (b"aa", b"aa")]


def test_of_equally_frequent_pairs_the_greater_bytes_win():
    assert merges_of({b"ab": 2, b"ac": 2, b"\xffa": 2}, 259) == [(b"\xff", b"a"), (b"a", b"c"), (b"a", b"b")]
    # ("b", "c") against ("ba", "x"): "ba" is greater than its beginning "b".
    assert merges_of({b"ba": 9, b"bax": 3, b"bc": 12, b"bcz": 1}, 258)[:2] == [(b"b", b"c"), (b"b", b"a")]
    assert merges_of({b"ba": 9, b"bax": 3, b"bc": 3}, 258) == [(b"b", b"a"), (b"ba", b"x")]


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.one_of(st.text("ab", min_size=1, max_size=14), st.text("abcd\xff", min_size=1, max_size=9)).map(
    lambda text: text.encode("latin-1")), st.integers(1, 4), max_size=8), st.integers(0, 30))
@example({b"aaaaaaa": 1, b"aaaaa": 1}, 9)
@example({b"abababab": 1, b"bababa": 1}, 9)
@example({b"aabaabaab": 2}, 9)
def test_equals_counting_everything_anew_for_each_merge(counts, n_merges):
    merges = merges_of(counts, 256 + n_merges)
    assert merges == naive_bpe(counts, n_merges)
    assert len({left + right for left, right in merges}) == len(merges)  # no two give the same bytes


def test_equals_counting_everything_anew_on_prose():
    text = (ROOT / "README.md").read_text(encoding="utf-8")[:6000]
    counts = count_chunks([text])
    merges = merges_of(counts, 256 + 150)
    assert merges == naive_bpe(counts, 150) and len(merges) == 150


def test_vocab_size_counts_bytes_merges_and_special_tokens():
    counts = {b"abcdefgh": 5}
    assert len(merges_of(counts, 260)) == 4 and len(merges_of(counts, 260, n_special=3)) == 1
    assert merges_of(counts, 257, n_special=1) == [] == merges_of({}, 300)
    with pytest.raises(ValueError, match="257.*2 special"):
        merges_of(counts, 257, n_special=2)


def test_ends_where_no_pair_occurs_twice_and_says_each_merge_to_the_bar():
    seen = []
    assert merges_of({b"abcd": 1, b"ab": 1}, 1000, progress=seen.append) == [(b"a", b"b")] and seen == [1]


def test_the_order_of_the_chunks_and_the_hash_seed_change_nothing():
    script = ("from part_4.bpe_training import *; "
              "c = count_chunks(open('README.md', encoding='utf-8')); print(hash('a'), train_bpe(c, 600)[0])")
    outputs = [subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True,
                              env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "PATH": ""}).stdout.split(" ", 1)
               for seed in ("1", "2")]
    assert outputs[0][0] != outputs[1][0] and outputs[0][1] == outputs[1][1]
    counts = list(count_chunks([(ROOT / "README.md").read_text(encoding="utf-8")]).items())
    merges = merges_of(dict(counts), 600)
    random.Random(0).shuffle(counts)
    assert merges_of(dict(counts), 600) == merges


def test_chunks_of_a_sentence():
    # A word takes the one space before it, contractions stand alone, of several spaces the last goes to the word.
    counts = count_chunks(["It's  2 o'clock,\n\n  he'll say", " he"])
    assert counts == {b"It": 1, b"'s": 1, b" ": 1, b" 2": 1, b" o": 1, b"'": 1, b"clock": 1, b",": 1, b"\n\n ": 1, b" he": 2,
                      b"'ll": 1, b" say": 1}


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_the_pattern_is_gpt2_s_own(text):
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(ORIGINAL, text)
    assert "".join(regex.findall(GPT2_PATTERN, text)) == text


def test_nothing_is_learnt_from_special_tokens_or_across_them():
    counts = count_chunks(["ab<|end|>ab <|end|><|end|> c"], special_tokens=("<|end|>", "<|pad|>"))
    assert counts == {b"ab": 2, b" ": 1, b" c": 1}
    assert b"abab" not in {left + right for left, right in merges_of(counts, 300)}


@pytest.mark.parametrize("names", [("a b",), ("",), ("<a>", "<a>"), ("<a>", "<a>b"), ("a\u2003",), ("\ud800",)])
def test_special_tokens_that_could_be_misread_are_refused(names):
    with pytest.raises(ValueError, match="special token"):
        check_special_tokens(names)
    with pytest.raises(ValueError, match="special token"):
        count_chunks(["text"], special_tokens=names)


def chunks(text, names=()):
    """What a text becomes: chunks, and names."""
    return [piece for i, part in enumerate(split_at_names(text, names))
            for piece in ([part] if i % 2 else regex.findall(GPT2_PATTERN, part))]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(TEXTS, st.sampled_from(["<|end|>", "<|", "end|>", " <|end|> "]))).map("".join), st.integers(1, 9))
@example("a\u3000 b", 1)
@example("丅 b", 1)
def test_pieces_have_the_chunks_of_the_whole_text(text, piece_bytes):
    content, names = text.encode("utf-8"), ("<|end|>", "|>x")
    pieces = list(read_pieces(io.BytesIO(content), piece_bytes))
    assert "".join(pieces) == text
    assert [chunk for piece in pieces for chunk in chunks(piece, names)] == chunks(text, names)
    # A piece ends at the first place to cut, so it is as small as it may be.
    places = [found.start() for found in CUT.finditer(content)]
    for start, end in file_spans(io.BytesIO(content), piece_bytes):
        assert end == next((place for place in places if place >= start + piece_bytes), len(content))


def test_a_cut_is_found_behind_anything_but_whitespace():
    spaces = [chr(i) for i in range(0x110000) if chr(i).isspace()]
    assert len(spaces) >= 29
    for space in spaces:
        assert not CUT.search(f"{space} x".encode()), hex(ord(space))
    signs = [chr(i) for i in range(0x3100) if not 0xD800 <= i < 0xE000 and not chr(i).isspace()]
    assert all(CUT.search(f"{sign} ".encode()) for sign in signs)


def test_a_cut_far_away_is_found_and_pieces_may_lie_in_the_middle_of_a_file():
    content = b"x" * 50_000 + b" y" + b"z" * 20_000
    assert list(file_spans(io.BytesIO(content), 10)) == [(0, 50_000), (50_000, 70_002)]
    assert "".join(read_pieces(io.BytesIO(b"one two three"), 1, start=3, end=7)) == " two"


def test_a_file_that_is_no_utf8_is_refused_with_the_place_of_the_byte(tmp_path):
    (tmp_path / "latin1.txt").write_bytes(b"word " * 1000 + b"caf\xe9 " + b"word " * 1000)
    with pytest.raises(InputError, match=r"latin1.txt.*byte 5003 is 0xe9.*iconv"):
        list(read_pieces(tmp_path / "latin1.txt", 100))
    (tmp_path / "half.txt").write_bytes("né".encode()[:-1])
    with pytest.raises(InputError, match=r"half.txt.*byte 1 is 0xc3"):
        list(read_pieces(tmp_path / "half.txt"))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(InputError, match="empty.txt.*no text"):
        list(read_pieces(tmp_path / "empty.txt"))
    with pytest.raises(InputError, match="missing.txt cannot be read"):
        list(read_pieces(tmp_path / "missing.txt"))


@pytest.mark.parametrize("n_process", [1, 2])
def test_a_file_counted_in_spans_equals_the_whole(tmp_path, n_process):
    text = "Ein Satz,  der läuft.\n\n<|end|> Und 2 noch'ne\u3000 Zeile " * 40
    (tmp_path / "text.txt").write_text(text, encoding="utf-8", newline="")
    done = []
    counts = count_file(tmp_path / "text.txt", ("<|end|>",), n_process, span_bytes=300, progress=done.append)
    assert counts == count_chunks([text], special_tokens=("<|end|>",))
    assert sum(done) == len(text.encode("utf-8")) and len(done) > 3
    assert count_file(b"one two three", end=7) == {b"one": 1, b" two": 1}
