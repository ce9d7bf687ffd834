import hashlib
import json
import random
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from part_0.cli import InputError
from part_2.corpus import load_corpus
from part_2.dataset import windows_at
from part_2.evaluate import windows_in_order
from part_4 import prepare_data, train_tokenizer
from part_4.bpe_tokenizer import BPETokenizer
from part_4.bpe_training import count_chunks, train_bpe
from part_4.prepare_data import open_tokens, prepare, shard_path, tokenize_file, tokenize_text
from part_4.run_corpus import tokens_folder
from part_4.token_dataset import ShardedTokens, check_content, get_batch, read_header, shard_content

WORDS = "a tale of two tokens,\n\nit's the best of  bytes 42 <|endoftext|>é\u3000你好".split(" ")
TEXT = " ".join(random.Random(0).choices(WORDS, k=2000)) + " end"
TOKENIZER = BPETokenizer(train_bpe(count_chunks([TEXT], special_tokens=("<|endoftext|>",)), 300)[1])
OTHER = BPETokenizer.from_merges([])
WHOLE = TOKENIZER.encode(TEXT, allow_special=True)


def everything(folder, tokenizer=TOKENIZER):
    """All tokens in a folder, training and validation."""
    return torch.cat([open_tokens(folder, split, tokenizer)[:] for split in ("train", "val")]).tolist()


@pytest.fixture
def shards(tmp_path):
    """Tokens 0, 1, ... 99 (mod 300) in shards of 7, 30, 1, 0 and 62."""
    ends, paths = [0, 7, 37, 38, 38, 100], []
    for i, (start, end) in enumerate(zip(ends, ends[1:])):
        paths.append(tmp_path / f"{i}.tokens")
        paths[-1].write_bytes(shard_content(np.arange(start, end), 2 * (end - start), TOKENIZER))
    return ShardedTokens(paths, TOKENIZER.fingerprint())


def test_the_bytes_of_a_shard_worked_by_hand(tmp_path):
    # uint16, low byte first: 1 -> 01 00, 299 = 0x012b -> 2b 01.
    body = bytes([0x01, 0x00, 0x2B, 0x01])
    content = shard_content([1, 299], 5, TOKENIZER)
    assert content == (b"LLMTOKEN" + struct.pack("<HHI", 1, 2, zlib.crc32(body)) + struct.pack("<QQ", 2, 5)
                       + bytes.fromhex(TOKENIZER.fingerprint()) + body) and len(content) == 64 + 4
    (tmp_path / "x").write_bytes(content)
    assert read_header(tmp_path / "x") == (2, zlib.crc32(body), 2, 5, TOKENIZER.fingerprint())


@pytest.mark.parametrize("n_special, itemsize", [(65_536 - 256, 2), (65_537 - 256, 4)])
def test_tokens_take_two_bytes_as_long_as_all_ids_fit(tmp_path, n_special, itemsize):
    class Large:
        vocab_size = 256 + n_special
        fingerprint = TOKENIZER.fingerprint

    largest = Large.vocab_size - 1
    (tmp_path / "x").write_bytes(shard_content([0, largest], 2, Large()))
    assert read_header(tmp_path / "x").itemsize == itemsize
    assert ShardedTokens([tmp_path / "x"], TOKENIZER.fingerprint())[:].tolist() == [0, largest]


def test_windows_cross_the_borders_of_shards(shards):
    plain = torch.arange(100)
    assert len(shards) == 100 and shards.n_bytes == 200
    for block_size in (1, 5, 40, 99):
        starts = torch.arange(100 - block_size)
        inputs, targets = shards.windows(starts, block_size)
        expected = windows_at(plain, starts, block_size)
        assert torch.equal(inputs, expected[0]) and torch.equal(targets, expected[1])
        assert inputs.dtype == targets.dtype == torch.int64


def test_it_stands_where_part_2_takes_a_tensor(shards):
    plain = torch.arange(100)
    assert shards[5:39].tolist() == list(range(5, 39)) and shards[-3:].tolist() == [97, 98, 99] and len(shards[100:]) == 0
    assert shards[torch.tensor([[99, 0], [37, 38]])].tolist() == [[99, 0], [37, 38]]
    for (inputs, targets), (x, y) in zip(windows_in_order(shards, 8, 3), windows_in_order(plain, 8, 3)):
        assert torch.equal(inputs, x) and torch.equal(targets, y)
    for outside in (100, -1):
        with pytest.raises(IndexError, match=f"{outside}.*100 tokens"):
            shards[torch.tensor([outside])]


def test_a_batch_is_a_function_of_seed_and_step_alone(shards):
    first = get_batch(shards, 3, 7, 6, 9)
    torch.manual_seed(1), np.random.seed(1)
    get_batch(shards, 3, 6, 6, 9)
    again, plain = get_batch(shards, 3, 7, 6, 9), get_batch(torch.arange(100), 3, 7, 6, 9)
    # Written down in the specification: NumPy's generator, seeded with (seed, step), over all windows.
    starts = np.random.default_rng((3, 7)).integers(100 - 9, size=6)
    for inputs, targets in (first, again, plain):
        assert inputs[:, 0].tolist() == starts.tolist()
        assert torch.equal(inputs, torch.from_numpy(starts)[:, None] + torch.arange(9)) and torch.equal(targets, inputs + 1)
    different = [get_batch(shards, *key, 6, 9)[0] for key in ((3, 8), (4, 7), (7, 3), (-3, 7))]
    assert all(not torch.equal(first[0], other) for other in different)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_the_processes_together_have_the_batch_of_one(shards, world_size):
    whole = get_batch(shards, 0, 5, 6, 4)
    shares = [get_batch(shards, 0, 5, 6, 4, rank, world_size) for rank in range(world_size)]
    for side in (0, 1):
        assert torch.equal(torch.cat([share[side] for share in shares]), whole[side])
    assert all(len(share[0]) == 6 // world_size for share in shares)


def test_every_window_is_drawn_and_all_equally_often():
    tokens, draws = torch.arange(25), 20_000
    starts = torch.cat([get_batch(tokens, 0, step, 100, 5)[0][:, 0] for step in range(draws // 100)])
    counts = torch.bincount(starts, minlength=20).double()
    assert len(counts) == 20  # starts 0 to 19: the last window's last target is token 24
    chi_squared = ((counts - draws / 20).square() / (draws / 20)).sum().item()
    assert chi_squared < 43.8  # 19 degrees of freedom: exceeded once in 1000 seeds


def test_batches_that_cannot_be_are_refused(shards):
    for rank, world_size in ((0, 4), (3, 3), (-1, 3)):
        with pytest.raises(ValueError, match=f"6 cannot be shared by {world_size}.*{rank}"):
            get_batch(shards, 0, 0, 6, 4, rank, world_size)
    assert get_batch(shards, 0, 0, 2, 99)[1][:, -1].tolist() == [99, 99]
    with pytest.raises(InputError, match="100 tokens.*block_size 100"):
        get_batch(shards, 0, 0, 2, 100)


def test_a_batch_maps_the_shard_and_does_not_load_it(tmp_path, monkeypatch):
    (tmp_path / "x").write_bytes(shard_content(np.zeros(1000), 1000, TOKENIZER))
    tokens, opened = ShardedTokens([tmp_path / "x"], TOKENIZER.fingerprint()), []
    monkeypatch.setattr(np, "memmap", lambda *args, memmap=np.memmap, **kw: opened.append(memmap(*args, **kw)) or opened[-1])
    for step in range(3):
        get_batch(tokens, 0, step, 4, 8)
    assert len(opened) == 1 and opened[0].dtype == np.uint16 and opened[0].mode == "r" and len(opened[0]) == 1000


@pytest.mark.parametrize("damage, words", [
    (lambda raw: raw[:-1], "has 67 bytes and should have 68"), (lambda raw: raw + b"x", "has 69 bytes and should have 68"),
    (lambda raw: raw[:40], "no shard"), (lambda raw: b"", "no shard"), (lambda raw: b"X" + raw[1:], "no shard"),
    (lambda raw: raw[:8] + b"\2" + raw[9:], "version 2"), (lambda raw: raw[:10] + b"\3" + raw[11:], "3 bytes a token")])
def test_a_damaged_shard_is_named(tmp_path, damage, words):
    path = tmp_path / "train_00007.tokens"
    path.write_bytes(damage(shard_content([1, 2], 2, TOKENIZER)))
    with pytest.raises(InputError, match=f"train_00007.tokens.*{words}"):
        ShardedTokens([path], TOKENIZER.fingerprint())


def test_a_changed_token_is_found_by_the_checksum(tmp_path):
    path, content = tmp_path / "x.tokens", bytearray(shard_content(np.zeros(700_000), 9, TOKENIZER))
    path.write_bytes(content)
    check_content(path)
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="x.tokens is damaged: its checksum"):
        check_content(path)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*WORDS, "  ", "\n", "\u3000 "]), min_size=6, max_size=60), st.integers(1, 80),
       st.sampled_from([0.1, 0.5]))
def test_the_tokens_are_those_of_the_whole_text(tmp_path_factory, words, shard_bytes, val_fraction):
    folder, text = tmp_path_factory.mktemp("tokens"), " ".join(words) + " end"
    try:
        index = tokenize_text(text, folder, TOKENIZER, shard_bytes=shard_bytes, val_fraction=val_fraction)
    except InputError as error:
        assert "too short" in str(error) and not list(folder.iterdir())
        return
    assert everything(folder) == TOKENIZER.encode(text, allow_special=True)
    assert sum(open_tokens(folder, split, TOKENIZER).n_bytes for split in ("train", "val")) == len(text.encode("utf-8"))
    assert len(index["train"]) + len(index["val"]) == len(list(folder.glob("*.tokens")))


def test_the_last_tenth_is_for_validation(tmp_path):
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=1000)
    val, n_bytes = open_tokens(tmp_path, "val", TOKENIZER), len(TEXT.encode("utf-8"))
    assert 0 <= n_bytes // 10 - val.n_bytes < 40  # the first place to cut behind nine tenths
    assert val[:].tolist() == WHOLE[-len(val):]
    tokenize_text(TEXT, tmp_path, TOKENIZER, val_fraction=0)
    assert len(open_tokens(tmp_path, "val", TOKENIZER)) == 0
    assert open_tokens(tmp_path, "train", TOKENIZER)[:].tolist() == WHOLE


def test_names_of_special_tokens_in_a_corpus_become_their_ids(tmp_path):
    tokenize_text(TEXT, tmp_path, TOKENIZER)
    assert everything(tmp_path).count(TOKENIZER.special_ids["<|endoftext|>"]) == TEXT.count("<|endoftext|>") > 100


def test_two_processes_write_the_same_files_as_one(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8", newline="")
    done = []
    for n_process in (1, 2):
        tokenize_file(tmp_path / "text.txt", tmp_path / str(n_process), TOKENIZER, n_process=n_process, shard_bytes=2500,
                      progress=done.append)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("1", "2"))
    assert one == two and {"train_00000.tokens", "train_00001.tokens", "val_00000.tokens", "index.json"} <= set(one)
    assert sum(done) == 2 * len(TEXT.encode("utf-8"))
    assert everything(tmp_path / "1") == WHOLE


@pytest.fixture
def written(monkeypatch):
    """The names of the shards that are written."""
    names = []

    def write(path, content, original=prepare_data.write_atomically):
        names.append(path.name)
        original(path, content)

    monkeypatch.setattr(prepare_data, "write_atomically", write)
    return names


def test_what_is_there_is_not_made_again(tmp_path, written):
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000)
    before, n_shards = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}, len(written)
    assert n_shards > 3
    seen = []
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000, progress=seen.append, name="other name")
    assert len(written) == n_shards and sum(seen) == len(TEXT.encode("utf-8"))
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == before  # nothing at all is written
    shard_path(tmp_path, "train", 1).unlink()
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000)
    assert written[n_shards:] == ["train_00001.tokens"] and everything(tmp_path) == WHOLE
    index = tmp_path / "index.json"
    index.write_text(index.read_text().replace('"complete": true', '"complete": false'))  # killed after the last shard
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000)
    assert len(written) == n_shards + 1 and everything(tmp_path) == WHOLE


def test_work_that_was_cut_off_goes_on_where_it_was(tmp_path, monkeypatch, written):
    class Killed(BaseException):
        pass

    original = prepare_data.shard_content

    def third_fails(tokens, n_bytes, tokenizer):
        if len(written) == 2:
            raise Killed
        return original(tokens, n_bytes, tokenizer)

    monkeypatch.setattr(prepare_data, "shard_content", third_fails)
    with pytest.raises(Killed):
        tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000)
    with pytest.raises(InputError, match="no finished tokens.*python3 part_4/train_tokenizer.py"):
        open_tokens(tmp_path, "train", TOKENIZER)
    monkeypatch.setattr(prepare_data, "shard_content", original)
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000)
    assert len(written) == len(set(written)) and everything(tmp_path) == WHOLE  # none was written twice


@pytest.mark.parametrize("change", ["text", "tokenizer", "shard_bytes", "index"])
def test_shards_of_another_text_tokenizer_or_cut_are_replaced(tmp_path, change):
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=2000)
    text = TEXT.replace("tale", "tail") if change == "text" else TEXT
    tokenizer = OTHER if change == "tokenizer" else TOKENIZER
    if change == "index":
        (tmp_path / "index.json").write_text("{")
    tokenize_text(text, tmp_path, tokenizer, shard_bytes=5000 if change == "shard_bytes" else 2000)
    assert everything(tmp_path, tokenizer) == tokenizer.encode(text, allow_special=True)
    index = json.loads((tmp_path / "index.json").read_text())
    assert len(index["train"]) + len(index["val"]) == len(list(tmp_path.glob("*.tokens")))


def test_a_kill_while_old_shards_are_removed_lets_none_of_them_pass(tmp_path, monkeypatch):
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=2000)
    text, removed = TEXT.replace("tale", "tail"), []

    original = type(tmp_path).unlink

    def dies(path, missing_ok=False):
        if len(removed) == 3:
            raise KeyboardInterrupt
        removed.append(path)
        original(path, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(tmp_path), "unlink", dies)
        tokenize_text(text, tmp_path, TOKENIZER, shard_bytes=2000)
    assert len(list(tmp_path.glob("*.tokens"))) > 3
    tokenize_text(text, tmp_path, TOKENIZER, shard_bytes=2000)
    assert everything(tmp_path) == TOKENIZER.encode(text, allow_special=True)


def test_another_tokenizer_is_refused_in_one_line(tmp_path):
    tokenize_text(TEXT, tmp_path, TOKENIZER)
    with pytest.raises(InputError, match="train_00000.tokens was made with another tokenizer") as error:
        open_tokens(tmp_path, "train", OTHER)
    assert "\n" not in str(error.value)


def test_a_damaged_shard_is_named_before_anything_is_made(tmp_path):
    tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000)
    path = shard_path(tmp_path, "train", 1)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="train_00001.tokens is damaged.*remove it"):
        tokenize_text(TEXT, tmp_path, TOKENIZER, shard_bytes=4000)


def test_texts_that_cannot_be_split_or_cut_are_refused_with_nothing_written(tmp_path):
    folder = tmp_path / "tokens"
    for text, words in (("short", "short|too short"), ("word " * 50 + "x" * 400, "no whitespace")):
        with pytest.raises(InputError, match=words):
            tokenize_text(text, folder, TOKENIZER)
    with pytest.raises(InputError, match="GPT-2's pattern"):
        tokenize_text(TEXT, folder, BPETokenizer(TOKENIZER.ranks, (), r"\S+|\s+"))
    with pytest.raises(ValueError, match="surrogates"):
        tokenize_text("a \ud800 b", folder, TOKENIZER)
    assert not folder.exists()
    (tmp_path / "latin1.txt").write_bytes(b"word " * 100 + b"\xe9 " + b"word " * 100)
    with pytest.raises(InputError, match="latin1.txt.*byte 500 is 0xe9"):
        tokenize_file(tmp_path / "latin1.txt", folder, TOKENIZER, shard_bytes=100)
    with pytest.raises(InputError, match="cannot be written"):
        tokenize_text(TEXT, tmp_path / "latin1.txt" / "x", TOKENIZER)


def test_prepare_takes_a_named_corpus_or_a_file(tmp_path, written):
    text = load_corpus("python-docs")
    for _ in range(2):  # the second time nothing is written
        train, val, data_hash = prepare("python-docs", tmp_path / "docs", TOKENIZER)
        assert torch.cat([train[:], val[:]]).tolist() == TOKENIZER.encode(text, allow_special=True)
        assert data_hash == hashlib.sha256(text.encode("utf-8")).hexdigest()
    assert written == ["train_00000.tokens", "val_00000.tokens"]
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8", newline="")
    train, val, data_hash = prepare(str(tmp_path / "text.txt"), tmp_path / "file", TOKENIZER, shard_bytes=6000)
    assert train[:].tolist() + val[:].tolist() == WHOLE
    assert data_hash == hashlib.sha256(TEXT.encode("utf-8")).hexdigest() and written[2:].count("val_00000.tokens") == 1
    with pytest.raises(InputError, match="neither a file nor one of the named corpora"):
        prepare(str(tmp_path / "missing.txt"), tmp_path / "none", TOKENIZER)


def test_the_script_learns_from_the_training_part_alone_and_leaves_all_that_training_needs(tmp_path, capsys):
    text = "the first part <|endoftext|> " * 200 + "zqzq " * 120  # the last tenth is all zq
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    summary = train_tokenizer.main(train_tokenizer.Config(data=str(tmp_path / "text.txt"), vocab_size=5000,
                                                          out=str(tmp_path / "out"), tokens=str(tmp_path / "tokens")))
    tokenizer = BPETokenizer.load(tmp_path / "out" / "tokenizer.tiktoken")
    assert b" first" in tokenizer.ranks and not any(b"zq" in token or b"end" in token for token in tokenizer.ranks)
    folder = tokens_folder(tmp_path / "tokens", str(tmp_path / "text.txt"), tokenizer)
    assert everything(folder, tokenizer) == tokenizer.encode(text, allow_special=True)
    train, val = (open_tokens(folder, split, tokenizer) for split in ("train", "val"))
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["train_tokens"], summary["val_tokens"]) == (len(train), len(val))
    assert summary["vocab_size"] == 257 + summary["merges"] == tokenizer.vocab_size < 5000
    assert summary["val_bytes_per_token"] == val.n_bytes / len(val) < 1.1  # no two bytes of " zqzq" were seen together
    assert summary["train_bytes_per_token"] == train.n_bytes / len(train) > 5
    printed = capsys.readouterr().out
    assert "no pair occurs twice" in printed
    assert f"python3 part_4/train.py --tokenizer {tmp_path / 'out' / 'tokenizer.tiktoken'} --data" in printed


@pytest.mark.parametrize("flags, words", [
    (dict(vocab_size=256), "at least 257"), (dict(special_tokens="a b"), "special token"),
    (dict(special_tokens="a,"), "special"), (dict(n_process=0), "n_process"), (dict(out=""), "empty")])
def test_flags_that_cannot_be_are_refused(flags, words):
    assert train_tokenizer.Config(special_tokens="", vocab_size=256).names() == ()
    with pytest.raises(ValueError, match=words):
        train_tokenizer.Config(**flags)
