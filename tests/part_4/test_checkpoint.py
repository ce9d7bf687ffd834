"""A checkpoint is whole or named as damaged; a run that was stopped ends like one that was not; the wrong run is refused."""

import errno
import hashlib
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from part_0.cli import InputError
from part_2.checkpoint import HASH_BYTES, MAGIC, load_checkpoint
from part_4 import checkpoint, run_evaluation, train
from part_4.bpe_tokenizer import BPETokenizer
from part_4.checkpoint import StopRequest, checkpoint_files, load_model, load_newest, save_numbered
from part_4.demo_checkpoint import same_weights
from tests.part_4.tiny_run import (
    Interruption,
    before_update,
    config,
    flags,
    interrupt,
    make_text,
    records,
    start_quickly,
    without_clock,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    start_quickly(monkeypatch)


@pytest.fixture
def text(tmp_path):
    return make_text(tmp_path / "text.txt")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def state(step, n=10):
    return {"step": step, "weights": torch.full((n,), float(step))}


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Files

@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_the_last_ones_are_kept_and_the_best_one_beside_them(tmp_path, keep_last):
    for step in (5, 10, 15, 20, 100):
        path = save_numbered(tmp_path, state(step), keep_last, is_best=step == 10)
        assert load_checkpoint(path)["step"] == step
    kept = [100, 20, 15][:keep_last]
    assert [load_checkpoint(path)["step"] for path in checkpoint_files(tmp_path)] == kept
    assert names(tmp_path) == ["best.pt", *(f"step_{step:08d}.pt" for step in reversed(kept))]
    assert torch.equal(load_checkpoint(tmp_path / "best.pt")["weights"], state(10)["weights"])


def test_the_best_one_has_the_content_of_the_numbered_one_and_a_later_best_takes_its_place(tmp_path):
    for step in (1, 2):
        path = save_numbered(tmp_path, state(step), 3, is_best=True)
        assert (tmp_path / "best.pt").read_bytes() == path.read_bytes()
    assert names(tmp_path) == ["best.pt", "step_00000001.pt", "step_00000002.pt"]


def test_where_a_file_cannot_have_two_names_the_best_one_is_a_copy(tmp_path, monkeypatch):
    def link(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    path = save_numbered(tmp_path, state(1), 1, is_best=True)
    assert (tmp_path / "best.pt").read_bytes() == path.read_bytes()
    save_numbered(tmp_path, state(2), 1)
    assert load_checkpoint(tmp_path / "best.pt")["step"] == 1 and not list(tmp_path.glob("*.tmp"))


def test_the_newest_is_that_of_the_highest_step_not_of_the_latest_date(tmp_path):
    for step in (9, 10, 11):
        save_numbered(tmp_path, state(step), 3)
    os.utime(tmp_path / "step_00000009.pt")
    found, path, damages = load_newest(tmp_path)
    assert found["step"] == 11 and path.name == "step_00000011.pt" and damages == []


def test_what_a_killed_save_left_is_removed_by_the_next_one(tmp_path):
    for name in ("step_00000003.pt.tmp", "best.pt.tmp"):
        (tmp_path / name).write_bytes(b"half")
    save_numbered(tmp_path, state(6))
    assert names(tmp_path) == ["step_00000006.pt"]


@pytest.mark.parametrize("harm", ["cut short", "empty", "changed", "other", "nothing but its head"])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_used(tmp_path, harm):
    for step in (1, 2, 3):
        save_numbered(tmp_path, state(step), 3)
    newest = tmp_path / "step_00000003.pt"
    raw = newest.read_bytes()
    middle = len(raw) // 2
    newest.write_bytes({"cut short": raw[:middle], "empty": b"", "other": b"something else" * 100, "changed":
                        raw[:middle] + bytes([raw[middle] ^ 1]) + raw[middle + 1:], "nothing but its head": raw[:40]}[harm])
    found, path, damages = load_newest(tmp_path)
    assert found["step"] == 2 and path.name == "step_00000002.pt"
    assert len(damages) == 1 and str(newest) in damages[0] and "damaged" in damages[0]


def test_a_newer_one_is_of_a_future_that_was_thrown_away_and_goes_with_the_next_save(tmp_path):
    for step in (1, 2, 3):
        save_numbered(tmp_path, state(step), 3)
    (tmp_path / "step_00000004.pt").write_bytes(b"damaged")
    save_numbered(tmp_path, state(2), 2)
    assert [load_checkpoint(path)["step"] for path in checkpoint_files(tmp_path)] == [2, 1]


def test_when_all_are_damaged_one_line_names_them_all_and_where_there_is_none_it_says_so(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint in"):
        load_newest(tmp_path)
    for step in (1, 2):
        save_numbered(tmp_path, state(step))
        path = tmp_path / f"step_0000000{step}.pt"
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="step_00000002.pt is damaged.*step_00000001.pt is damaged") as refusal:
        load_newest(tmp_path)
    assert "\n" not in str(refusal.value)


class Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("how", ["pickle", "torch.save"])
def test_code_in_a_checkpoint_does_not_run_even_under_a_right_checksum(tmp_path, how):
    folder, touched = tmp_path / "run", tmp_path / "touched"
    folder.mkdir()
    save_numbered(folder, state(1))
    evil = {"step": 2, "weights": Touch(touched)}
    if how == "pickle":
        body = pickle.dumps(evil, protocol=2)  # that of torch.save
    else:
        torch.save(evil, tmp_path / "evil")
        body = (tmp_path / "evil").read_bytes()
    (folder / "step_00000002.pt").write_bytes(MAGIC + hashlib.sha256(body).digest() + body)
    assert len(hashlib.sha256(body).digest()) == HASH_BYTES
    found, _, damages = load_newest(folder)
    assert found["step"] == 1 and "step_00000002.pt" in damages[0] and not touched.exists()
    with pytest.raises(InputError, match="step_00000002.pt"):
        load_model(folder / "step_00000002.pt")
    assert not touched.exists()


# A full disk

def full_disk(monkeypatch, where):
    """An OSError as on a full disk, in the middle of the content or when it is flushed."""
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "flush":
        monkeypatch.setattr(os, "fsync", full)
    elif where == "rename":
        monkeypatch.setattr(os, "replace", full)
    else:
        class Full(io.BufferedWriter):
            def write(self, content):
                return full() if self.tell() > 20_000 else super().write(content)

        monkeypatch.setattr("part_2.checkpoint.open", lambda path, mode: Full(io.FileIO(path, "w")) if mode == "wb" else
                            open(path, mode), raising=False)


@pytest.mark.parametrize("where", ["write", "flush", "rename"])
def test_on_a_full_disk_one_line_names_the_older_checkpoint_which_is_untouched(tmp_path, monkeypatch, where):
    save_numbered(tmp_path, state(1, 100_000), is_best=True)
    before = content(tmp_path)
    with monkeypatch.context() as patch:
        full_disk(patch, where)
        with pytest.raises(InputError, match="step 2 could not be written to .*No space left on device; step_00000001.pt is "
                                             "intact: make room and go on with --resume auto") as refusal:
            save_numbered(tmp_path, state(2, 100_000), keep_last=1, is_best=True)
    assert "\n" not in str(refusal.value) and content(tmp_path) == before
    save_numbered(tmp_path, state(2, 100_000), keep_last=1)  # there is room again
    assert names(tmp_path) == ["best.pt", "step_00000002.pt"]


def test_on_a_disk_full_from_the_start_it_is_said_that_there_is_no_older_one(tmp_path, monkeypatch):
    full_disk(monkeypatch, "flush")
    with pytest.raises(InputError, match="step 2 could not be written.*there is no older one"):
        save_numbered(tmp_path, state(2))
    assert names(tmp_path) == []


SAVE_UNDER_A_LIMIT = """
import resource, sys
import torch
from part_0.cli import InputError
from part_4.checkpoint import save_numbered
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file may become longer
try:
    save_numbered(sys.argv[1], {"step": 2, "weights": torch.ones(int(sys.argv[2]))}, 1)
except InputError as error:
    sys.exit(f"refused: {error}")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the length of files")
def test_where_the_system_itself_refuses_to_write_on_the_older_checkpoint_stays(tmp_path):
    save_numbered(tmp_path, state(1))
    before = content(tmp_path)
    for n, fits in ((100_000, False), (1_000, True)):
        child = subprocess.run([sys.executable, "-c", SAVE_UNDER_A_LIMIT, str(tmp_path), str(n)], cwd=ROOT, text=True,
                               stderr=subprocess.PIPE)
        if fits:
            assert child.returncode == 0 and names(tmp_path) == ["step_00000002.pt"]
        else:
            assert child.returncode == 1 and child.stderr.count("\n") == 1
            assert "refused: the checkpoint of step 2 could not be written" in child.stderr
            assert os.strerror(errno.EFBIG) in child.stderr and "step_00000001.pt is intact" in child.stderr
            assert content(tmp_path) == before


def test_a_run_that_meets_a_full_disk_goes_on_when_there_is_room_and_ends_the_same(text, tmp_path, monkeypatch):
    train.main(config(text, tmp_path / "whole"))
    with monkeypatch.context() as patch:
        before_update(patch, 7, lambda: full_disk(patch, "write"))
        with pytest.raises(InputError, match="step 8 could not be written.*No space left.*step_00000004.pt is intact"):
            train.main(config(text, tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.tmp"))
    train.main(config(text, tmp_path / "run", resume="auto"))
    assert same_weights(tmp_path / "whole", tmp_path / "run")


# Stopping and going on

EVERYTHING = dict(dropout=0.2, optimizer="muon", schedule="wsd", micro_batch_size=2, steps=10, eval_every=4, save_every=3)


def assert_equal_runs(first, second):
    """Weights, moments and logs of two finished runs are the same, but for the clock."""
    assert same_weights(first, second)
    assert without_clock(records(first)) == without_clock(records(second))
    assert records(first, "samples.jsonl") == records(second, "samples.jsonl")
    summaries = [without_clock([json.loads((out / "summary.json").read_text())]) for out in (first, second)]
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_stopped_by_a_signal_at_any_step_and_resumed_ends_bit_for_bit_like_one_that_was_not(text, tmp_path, capsys,
                                                                                                 number, code):
    train.main(config(text, tmp_path / "whole", **EVERYTHING))
    for n_done in range(9):
        out = tmp_path / f"stopped_{n_done}"
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
            before_update(patch, n_done, lambda: signal.raise_signal(number))
            train.main(config(text, out, **EVERYTHING, resume="auto"))
        # The signal comes during the next update, which is finished and saved.
        assert end.value.code == code
        assert f"stopped at step {n_done + 1}, which is saved; go on with the same command and --resume auto" in (
            capsys.readouterr().out)
        assert load_newest(out)[0]["step"] == n_done + 1
        train.main(config(text, out, **EVERYTHING, resume="auto"))
        assert "going on from" in capsys.readouterr().out
        assert_equal_runs(tmp_path / "whole", out)
        if number == signal.SIGINT and n_done == 2:
            break  # every step is tried with SIGTERM


def test_a_signal_during_the_last_update_lets_the_run_end_well(text, tmp_path, monkeypatch):
    train.main(config(text, tmp_path / "whole"))
    before_update(monkeypatch, 11, lambda: signal.raise_signal(signal.SIGTERM))
    assert train.main(config(text, tmp_path / "run"))[-1]["steps"] == 12
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_a_signal_before_the_first_update_does_not_claim_that_anything_is_saved(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "matmul_peak", lambda *arguments, **options: signal.raise_signal(signal.SIGTERM) or 1.0)
    with pytest.raises(SystemExit) as end:
        train.main(config(text, tmp_path / "run"))
    assert end.value.code == 143 and checkpoint_files(tmp_path / "run") == []
    assert "saved" not in capsys.readouterr().out


@pytest.mark.parametrize("options", [dict(), dict(dropout=0.3), dict(optimizer="muon"), dict(schedule="wsd"),
                                     dict(schedule="linear", tie_embeddings=True), dict(micro_batch_size=1, dropout=0.1),
                                     dict(activation_checkpointing=True, dropout=0.1)], ids=str)
@pytest.mark.parametrize("n_done", [4, 10])
def test_a_crashed_run_resumed_ends_bit_for_bit_like_one_that_was_not(text, tmp_path, monkeypatch, options, n_done):
    train.main(config(text, tmp_path / "whole", **options))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, n_done)  # at 4, just after a save and an evaluation; at 10, two steps after them
        train.main(config(text, tmp_path / "parts", **options))
    resumed = train.main(config(text, tmp_path / "parts", **options, resume="auto"))
    assert resumed[0]["step"] == n_done // 4 * 4
    assert_equal_runs(tmp_path / "whole", tmp_path / "parts")


def test_a_crash_between_a_save_and_its_second_name_does_not_lose_the_best_one(text, tmp_path, monkeypatch):
    out, losses = tmp_path / "run", iter([9.0, 5.0, 3.0])  # at the steps 0, 4 and 8

    def crash(path, name):
        if path.name == "step_00000008.pt":
            raise Interruption
        os.link(path, name)

    monkeypatch.setattr(run_evaluation, "windows_loss", lambda *arguments: next(losses))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        patch.setattr(checkpoint, "give_second_name", crash)
        train.main(config(text, out))
    losses = iter([3.0, 4.0])  # step 8 once more, then 12
    assert train.main(config(text, out, resume="auto"))[-1]["best_val_loss"] == 3.0
    assert load_checkpoint(out / "best.pt")["step"] == 8


def test_a_damaged_newest_checkpoint_of_a_run_is_named_and_the_one_before_it_used(text, tmp_path, capsys):
    train.main(config(text, tmp_path / "whole"))
    train.main(config(text, tmp_path / "run"))
    newest = tmp_path / "run" / "step_00000012.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    history = train.main(config(text, tmp_path / "run", resume="auto"))
    printed = capsys.readouterr().out
    assert "step_00000012.pt is damaged" in printed and "the one before it is used" in printed
    assert history[0]["step"] == 8
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_a_save_behind_a_damaged_newer_one_is_not_pruned_in_its_place(text, tmp_path):
    out = tmp_path / "run"
    train.main(config(text, out))
    (out / "step_00000012.pt").write_bytes(b"damaged")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        before_update(patch, 1, lambda: signal.raise_signal(signal.SIGTERM))
        train.main(config(text, out, resume="auto", keep_last=1))
    assert load_newest(out)[0]["step"] == 10


def test_all_checkpoints_damaged_ends_in_one_line_and_changes_nothing(text, tmp_path):
    train.main(config(text, tmp_path / "run"))
    for path in checkpoint_files(tmp_path / "run"):
        path.write_bytes(b"damaged")
    before = content(tmp_path)
    with pytest.raises(InputError, match="step_00000012.pt .*damaged.*; .*step_00000008.pt .*damaged") as refusal:
        train.main(config(text, tmp_path / "run", resume="auto"))
    assert "\n" not in str(refusal.value) and content(tmp_path) == before


def test_resume_auto_starts_where_nothing_is_and_resume_yes_refuses(text, tmp_path):
    train.main(config(text, tmp_path / "plain"))
    train.main(config(text, tmp_path / "auto", resume="auto"))
    assert same_weights(tmp_path / "plain", tmp_path / "auto")
    with pytest.raises(InputError, match="there is no checkpoint in .*leave --resume out to start there"):
        train.main(config(text, tmp_path / "yes", resume="yes"))
    assert not (tmp_path / "yes").exists()


def test_resuming_a_finished_run_changes_nothing(text, tmp_path):
    train.main(config(text, tmp_path / "whole"))
    train.main(config(text, tmp_path / "run"))
    train.main(config(text, tmp_path / "run", resume="yes"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_a_line_of_the_log_cut_short_by_a_crash_is_written_anew(text, tmp_path, monkeypatch):
    train.main(config(text, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 10)
        train.main(config(text, tmp_path / "run"))
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    train.main(config(text, tmp_path / "run", resume="auto"))
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


def test_the_text_s_tokens_may_be_gone_when_a_run_is_resumed(text, tmp_path, monkeypatch):
    train.main(config(text, tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 10)
        train.main(config(text, tmp_path / "run"))
    train.main(config(text, tmp_path / "run", resume="auto", tokens=str(tmp_path / "elsewhere"), keep_last=5))
    assert_equal_runs(tmp_path / "whole", tmp_path / "run")


# The wrong run

@pytest.mark.parametrize("change, complaint", [
    (dict(d_model=32), "--d_model 16, not 32"), (dict(lr=1.0), "--lr 0.003, not 1"), (dict(seed=1), "--seed 1337, not 1"),
    (dict(steps=99), "--steps 12, not 99"), (dict(optimizer="muon"), "--optimizer adamw, not muon"),
    (dict(schedule="wsd"), "--schedule cosine, not wsd"), (dict(batch_size=8), "--batch_size 4, not 8"),
    (dict(dropout=0.1), "--dropout 0.0, not 0.1"), (dict(vocab_size=290), "--vocab_size 280, not 290"),
    (dict(eval_every=2), "--eval_every 4, not 2")])
def test_resuming_with_other_flags_is_refused_and_nothing_changed(text, tmp_path, change, complaint):
    out = tmp_path / "run"
    train.main(config(text, out))
    before = content(out)
    with pytest.raises(InputError, match=f"was started with {complaint}.*same flags, or start anew in another --out") as end:
        train.main(config(text, out, resume="auto", **change))
    assert "\n" not in str(end.value) and content(out) == before


def test_resuming_on_another_text_is_refused_and_nothing_changed(text, tmp_path):
    out = tmp_path / "run"
    train.main(config(text, out))
    before = content(out)
    text.write_text(text.read_text(encoding="utf-8") + " more", encoding="utf-8")
    with pytest.raises(InputError, match="was started with another .*start anew in another --out") as refusal:
        train.main(config(text, out, resume="auto"))
    assert "\n" not in str(refusal.value) and content(out) == before


def test_resuming_with_another_tokenizer_is_refused_and_with_its_own_it_goes_on(text, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupt(patch, 10)
        train.main(config(text, out))
    _, tokenizer, _ = load_model(checkpoint_files(out)[0])
    tokenizer.save(tmp_path / "own.tiktoken")
    BPETokenizer.from_merges([(b"t", b"h")]).save(tmp_path / "other.tiktoken")
    before = content(out)
    with pytest.raises(InputError, match="was started with another tokenizer than --tokenizer .*other.tiktoken"):
        train.main(config(text, out, resume="auto", tokenizer=str(tmp_path / "other.tiktoken")))
    assert content(out) == before
    train.main(config(text, out, resume="auto", tokenizer=str(tmp_path / "own.tiktoken")))
    train.main(config(text, tmp_path / "whole"))
    assert same_weights(tmp_path / "whole", out)


# Reading a model back

def test_a_checkpoint_rebuilds_the_trained_model_and_its_tokenizer(text, tmp_path, monkeypatch):
    trained = []
    build = train.build_model
    monkeypatch.setattr(train, "build_model", lambda *arguments: trained.append(build(*arguments)) or trained[0])
    train.main(config(text, tmp_path / "run", dropout=0.5))
    model, tokenizer, saved = load_model(tmp_path / "run" / "step_00000012.pt")
    assert not model.training and saved["config"]["dropout"] == 0.5
    ids = tokenizer.encode("the cat sat")
    assert tokenizer.decode(ids) == "the cat sat" and len(ids) < 11  # merges there are
    assert torch.equal(model(torch.tensor([ids])), trained[0].eval()(torch.tensor([ids])))


def test_a_checkpoint_of_another_trainer_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint .*python3 part_4/train.py"):
        load_model(tmp_path / "best.pt")
    with pytest.raises(InputError, match="step_00000001.pt is no checkpoint of part_4/train.py"):
        load_model(save_numbered(tmp_path, state(1)))


# Signals

def test_a_stop_request_notes_the_first_signal_and_a_second_ctrl_c_ends_at_once():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with StopRequest() as stop:
        assert stop.signal is None
        signal.raise_signal(signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)  # the first Ctrl-C
        assert stop.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_sigterm_after_a_ctrl_c_does_not_end_at_once():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # torchrun sends it when it gets a Ctrl-C
        assert stop.signal == signal.SIGINT
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError), StopRequest():
        raise RuntimeError
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a process that gets a signal from another one")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_process_that_gets_a_signal_saves_and_ends_with_the_shell_s_code(text, tmp_path, number, code):
    train.main(config(text, tmp_path / "tokens_are_made", steps=1))
    out = tmp_path / "run"
    c = config(text, out, steps=100_000, eval_every=50_000)
    command = [sys.executable, str(ROOT / "part_4" / "train.py"), *flags(c)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        while process.poll() is None and not checkpoint_files(out):
            time.sleep(0.01)
        os.kill(process.pid, number)
        printed, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    _, tokenizer, saved = load_model(checkpoint_files(out)[0])
    assert f"stopped at step {saved['step']}, which is saved; go on with the same command and --resume auto" in printed
    assert records(out)[-1]["step"] == saved["step"] - 1  # no step is lost


def test_files_of_other_names_are_neither_loaded_nor_removed(tmp_path):
    for name in ("step_final.pt", "step_00000002_good.pt"):
        (tmp_path / name).write_bytes(b"mine")
    for step in (1, 2, 3):
        save_numbered(tmp_path, {"step": step}, keep_last=1)
    assert load_newest(tmp_path)[0]["step"] == 3
    assert {path.name for path in tmp_path.iterdir()} == {"step_final.pt", "step_00000002_good.pt", "step_00000003.pt"}
