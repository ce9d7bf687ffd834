"""Lesson 4.1 - learn a byte-pair vocabulary: merge the most frequent pair of neighbours, again and again.

    start      each text is its bytes, and the vocabulary is the 256 bytes
    repeat     count the pairs of neighbouring tokens; the most frequent pair becomes one new token, everywhere

(Gage 1994; Sennrich et al. 2016; on bytes: Radford et al. 2019, "GPT-2", section 2.2.) No pair reaches across two chunks
(lesson 4.1, `text_pieces`), so a text of any size boils down to its distinct chunks and how often each occurs. Of pairs that
are equally frequent the one with the greater bytes is merged, first token first; so the result is the same everywhere.

Two merges never give the same bytes. What lies between two places that were never merged across develops as it would alone;
so wherever the bytes of a token stand by themselves, they were merged as they were the first time.
"""

import heapq
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from itertools import pairwise
from multiprocessing import get_context

import regex

from part_0.cli import InputError
from part_2.byte_tokenizer import N_BYTES
from part_4.text_pieces import GPT2_PATTERN, check_special_tokens, file_spans, open_text, read_pieces, split_at_names


def count_chunks(texts, pattern=GPT2_PATTERN, special_tokens=()):
    """How often each chunk occurs in an iterable of str, such as `read_pieces(path)`. Returns a Counter of bytes.

    special_tokens: names that are cut out, so that nothing is learnt from them or across them.
    """
    check_special_tokens(special_tokens)
    find, counts = regex.compile(pattern).findall, Counter()
    for text in texts:
        for between in split_at_names(text, special_tokens)[::2]:
            counts.update(find(between))
    return Counter({chunk.encode("utf-8"): n for chunk, n in counts.items()})


def count_file(path, special_tokens=(), n_process=1, end=None, span_bytes=2**24, progress=None):
    """`count_chunks` of a file by GPT-2's pattern, in `n_process` processes; in memory are only pieces and Counters.

    path: a path, or the text's bytes; end: only the bytes before this place to cut; progress: is called with the number of
    bytes just read. InputError when the file is no UTF-8 text.
    """
    check_special_tokens(special_tokens)
    with open_text(path) as file:
        spans = list(file_spans(file, span_bytes, end=end))
    job, total = partial(_count_span, path, tuple(special_tokens)), Counter()
    for (start, end), counts in zip(spans, in_processes(job, spans, n_process)):
        total.update(counts)
        if progress:
            progress(end - start)
    return total


def _count_span(path, special_tokens, span):
    return count_chunks(read_pieces(path, start=span[0], end=span[1]), special_tokens=special_tokens)


def in_processes(job, items, n_process):
    """The results of `job(item)` in order, from `n_process` processes; one works in this process."""
    if n_process == 1 or len(items) == 1:
        yield from map(job, items)
        return
    try:
        with ProcessPoolExecutor(min(n_process, len(items)), mp_context=get_context("spawn")) as pool:
            yield from pool.map(job, items)
    except BrokenProcessPool:
        raise InputError("a process was killed: is there too little memory? "
                         "What is finished is kept") from None


def train_bpe(chunk_counts, vocab_size, n_special=0, progress=None):
    """Learn the merges. Ends before `vocab_size` is reached when no pair occurs twice.

    chunk_counts: a dict of bytes to int, as from `count_chunks`; vocab_size: how many ids there shall be, of which 256 are
    bytes and `n_special` special tokens; progress: is called with 1 after each merge. Returns the merges in order, pairs of
    bytes, and the ranks: a dict of each token's bytes to its id. ValueError when vocab_size is too small.

    A merge touches only the chunks that hold its pair, and the counts of that pair's neighbours.
    """
    n_merges = vocab_size - N_BYTES - n_special
    if n_merges < 0:
        raise ValueError(f"a vocabulary of {vocab_size} is too small for {N_BYTES} bytes and {n_special} special tokens")
    # A chunk is a str with the character chr(id) for each token: replacing a pair, from left to right, is str.replace.
    words, counts = [chunk.decode("latin-1") for chunk in chunk_counts], list(chunk_counts.values())
    tokens = [bytes([i]) for i in range(N_BYTES)]
    pair_counts, where = defaultdict(int), defaultdict(list)  # where: the words that hold a pair, or once did
    for index, (word, count) in enumerate(zip(words, counts)):
        for left, right in pairwise(word):
            pair_counts[left + right] += count
            where[left + right].append(index)

    # The heap gives the smallest first. So counts are negative, and bytes are turned round: the greater, the smaller its
    # key. The end of the bytes counts as greater than any sign, because a beginning is smaller than the whole.
    keys = [_descending(token) for token in tokens]
    heap = [(-count, keys[ord(pair[0])], keys[ord(pair[1])], pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)
    merges = []
    while heap and len(merges) < n_merges:
        negative, *key, pair = heapq.heappop(heap)
        count = pair_counts[pair]
        if count != -negative:  # counts only fall once a pair is there; the heap learns of it when the pair comes up
            if count:
                heapq.heappush(heap, (-count, *key, pair))
            continue
        if count < 2:
            break
        left, right = (tokens[ord(sign)] for sign in pair)
        new = chr(len(tokens))
        merges.append((left, right))
        tokens.append(left + right)
        keys.append(_descending(left + right))
        changes = defaultdict(int)
        for index in where.pop(pair):
            words[index] = _merge(words[index], pair, new, counts[index], changes, where, index)
        for changed, change in changes.items():
            pair_counts[changed] += change
            if new in changed:
                heapq.heappush(heap, (-change, *(keys[ord(sign)] for sign in changed), changed))
        del pair_counts[pair]
        if progress:
            progress(1)
    return merges, {token: rank for rank, token in enumerate(tokens)}


def _descending(token):
    return "".join(chr(N_BYTES - 1 - byte) for byte in token) + chr(N_BYTES)


def _merge(word, pair, new, count, changes, where, index):
    """`word` with `new` for each `pair`; the pairs at the seams go into `changes` and `where`."""
    first, *rest = word.split(pair)
    before = after = first[-1:]  # what stands left of the seam, before the merge and after it
    for part in rest:
        if before:
            changes[before + pair[0]] -= count
            changes[after + new] += count
            where[after + new].append(index)
        if part:
            changes[pair[1] + part[0]] -= count
            changes[new + part[0]] += count
            where[new + part[0]].append(index)
        before, after = (part[-1], part[-1]) if part else (pair[1], new)
    return word.replace(pair, new)
