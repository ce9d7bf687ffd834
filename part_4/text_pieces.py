"""Lesson 4.1 - how a text is cut: at the names of special tokens, into chunks, and into pieces that fit into memory.

A chunk is a word with the space before it; no token reaches across two chunks. No chunk of GPT-2's pattern goes on from
another character to whitespace: just before whitespace that follows something else a chunk begins, whatever stands further
left or right. There a file may be cut, and its pieces read, counted and encoded apart, in any order and by several
processes, with the same result.
"""

import io
import re
from pathlib import Path

from part_0.cli import InputError

# Contractions; letters, digits, or other characters, each with one space before it; whitespace, whose last before a word
# is left to the word. GPT-2's encoder.py as tiktoken writes it: "++" never gives back what it took, which is faster.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
PIECE_BYTES = 2**20

# On bytes, so that a file need not be decoded to be cut. Before the cut there is no whitespace: not ASCII's, no control
# 1c-1f (whitespace to Python), no U+0085, A0, 1680, 2000-200A, 2028, 2029, 202F, 205F, 3000. Behind it is some of ASCII's.
CUT = re.compile(rb"(?<=[^\s\x1c-\x1f])(?<!\xc2[\x85\xa0])(?<!\xe1\x9a\x80)(?<!\xe2\x80[\x80-\x8a\xa8\xa9\xaf])"
                 rb"(?<!\xe2\x81\x9f)(?<!\xe3\x80\x80)(?=[ \t\n\r])")


def check_special_tokens(names):
    """ValueError unless the names are different texts without whitespace, and none of them begins with another.

    A name with whitespace could be cut in two; where one name begins with another, a text could be read in two ways.
    """
    for i, name in enumerate(names):
        if not name or re.search(r"\s", name) or any("\ud800" <= sign <= "\udfff" for sign in name):
            raise ValueError(f"the name of a special token must be valid Unicode without whitespace, not {name!r}")
        if any(other.startswith(name) for other in (*names[:i], *names[i + 1:])):
            raise ValueError(f"the special token {name!r} is there twice, or another one begins with it")


def split_at_names(text, names):
    """Cut a text at special tokens' names. Returns a list: text, name, text, ..., name, text."""
    return re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]


def open_text(path):
    """Open a file for reading bytes, or a text given as bytes; InputError when it cannot be read or holds nothing."""
    if isinstance(path, bytes):
        return io.BytesIO(path)
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file holds no text")
        return open(path, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def next_cut(file, at, end):
    """The first place at `at` or behind it where a binary file may be cut; `end` when there is none before."""
    begin, length = max(at - 3, 0), 4096  # the longest whitespace character has three bytes
    while True:
        file.seek(begin)
        window = file.read(min(length, end - begin))
        if found := CUT.search(window, at - begin):
            return begin + found.start()
        if begin + len(window) >= end:
            return end
        length *= 2


def file_spans(file, span_bytes=PIECE_BYTES, start=0, end=None):
    """Cut a binary file, from byte `start` to `end` (a place to cut, or the file's end), into spans.

    Yields (start, end): at least `span_bytes` each but for the last, and more only up to the next place to cut.
    """
    end = file.seek(0, io.SEEK_END) if end is None else end
    while start < end:
        stop = end if end - start <= span_bytes else next_cut(file, start + span_bytes, end)
        yield start, stop
        start = stop


def read_pieces(path_or_file, piece_bytes=PIECE_BYTES, start=0, end=None):
    """The text of a UTF-8 file, piece by piece: no more than one is in memory.

    path_or_file: a path, or an open binary file. The chunks of the pieces are the chunks of the whole text, and no special
    token's name is cut. Yields str of about `piece_bytes` bytes. InputError when the file cannot be read, is empty, or no
    UTF-8; it names the first bad byte, counted from the start of the file.
    """
    if not hasattr(path_or_file, "read"):
        with open_text(path_or_file) as file:
            yield from read_pieces(file, piece_bytes, start, end)
        return
    for begin, stop in file_spans(path_or_file, piece_bytes, start, end):
        path_or_file.seek(begin)
        content = path_or_file.read(stop - begin)
        try:
            yield content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{getattr(path_or_file, 'name', 'the text')}: no UTF-8 text (byte {begin + error.start} is "
                             f"{content[error.start]:#04x}); convert it first, for example with iconv -t UTF-8") from None
