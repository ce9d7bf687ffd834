"""The proof of lesson 4.4: a run that gets SIGKILL again and again, at random moments, ends like one that does not."""

import multiprocessing
import os
import random
import signal
import sys
import threading
import time

import pytest
import torch

from part_4 import train
from part_4.checkpoint import checkpoint_files, load_newest
from part_4.demo_checkpoint import same_weights
from tests.part_4.tiny_run import config, make_text, records, start_quickly, without_clock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither SIGKILL nor a fork server")
N_KILLS = 24
# With everything whose state could be lost: dropout, Muon's and AdamW's moments, micro-batches, a schedule.
OPTIONS = dict(steps=240, dropout=0.2, optimizer="muon", schedule="wsd", micro_batch_size=2, eval_every=30, save_every=2,
               keep_last=2, resume="auto")


def run_in_child(c):
    """What each started process does: the trainer, without measuring the machine first."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    torch.set_num_threads(1)
    train.tqdm.set_lock(threading.RLock())  # its own lock between processes would be left behind by those that are killed
    with pytest.MonkeyPatch.context() as patch:
        start_quickly(patch)
        train.main(c)


def start(c):
    """Start the run in a process of its own that need not import anything: it is forked from one that has."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "torch.utils.tensorboard", "torch._dynamo",
                                    "torch.distributed.checkpoint.state_dict"])
    process = context.Process(target=run_in_child, args=(c,))
    process.start()
    return process


def kill(process, out, log, chance, in_a_save):
    """SIGKILL at a random time, or in a random save while its temporary file is there. False if the run ended before.

    log: what `log_file` said before the start.
    """
    saves, wait, started, seen = chance.randrange(1, 12), chance.uniform(0.0, 0.5), None, False
    if chance.random() < 0.2:
        started = time.monotonic()  # whatever it is then at, the start included
    while process.is_alive():
        if in_a_save:
            is_saving = in_the_middle(out)
            saves -= is_saving and not seen
            seen = is_saving
            if seen and saves <= 0 and log_file(out) != log:
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(0.002)
                if in_the_middle(out):  # it is held in the middle of a save
                    break
                os.kill(process.pid, signal.SIGCONT)
        else:
            if started is None and log_file(out) != log:  # the log was cut back and training begins
                started = time.monotonic()
            if started is not None and time.monotonic() - started > wait:
                break
            time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


# A run that is begun anew moves the folder away, and may do so at any moment of these two.

def log_file(out):
    """Which file the log is: another one after each start. None if there is none."""
    try:
        return (out / "metrics.jsonl").stat().st_ino
    except FileNotFoundError:
        return None


def in_the_middle(out):
    """Whether the temporary file of a save is there."""
    try:
        return bool(list(out.glob("step_*.pt.*tmp")))
    except FileNotFoundError:
        return False


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_bit_for_bit_like_one_that_was_not(tmp_path):
    text = make_text(tmp_path / "text.txt")
    whole, out = tmp_path / "whole", tmp_path / "killed"
    undisturbed = start(config(text, whole, **OPTIONS))
    undisturbed.join()
    assert undisturbed.exitcode == 0

    chance = random.Random(1)
    kills, in_saves, steps = 0, 0, set()
    while kills < N_KILLS:
        in_a_save, log = kills % 3 == 0, log_file(out)
        process = start(config(text, out, **OPTIONS))
        if not kill(process, out, log, chance, in_a_save):
            assert process.exitcode == 0  # it came to its end first, on a fast machine: begin again
            for path in checkpoint_files(out):
                path.unlink()
            continue
        kills += 1
        in_saves += in_the_middle(out)
        if checkpoint_files(out):
            state, path, damages = load_newest(out)
            assert damages == [] and path == checkpoint_files(out)[0]  # a kill damages nothing
            steps.add(state["step"])
    last = start(config(text, out, **OPTIONS))
    last.join()
    assert last.exitcode == 0
    assert in_saves >= N_KILLS // 3 and len(steps) > 5

    assert same_weights(whole, out)
    assert without_clock(records(out)) == without_clock(records(whole))
    assert records(out, "samples.jsonl") == records(whole, "samples.jsonl")
    assert not list(out.glob("*.tmp"))
