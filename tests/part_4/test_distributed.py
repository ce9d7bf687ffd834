"""Two gloo processes do what one does with the same batch, and a job that loses one of them can be gone on with."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint
from part_4 import train
from part_4.checkpoint import checkpoint_files, load_model, load_newest
from part_4.distributed import Process, from_main, gather, process_group, sum_over_processes, world_size
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
unix_only = pytest.mark.skipif(sys.platform == "win32", reason="torch for Windows is built without what torchrun needs")


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    start_quickly(monkeypatch)


def torchrun(script, *arguments):
    """The command that starts a script in two processes."""
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script), *arguments]


def environment():
    """gloo through the machine's own loop, whatever its network is."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo",
            "PYTHONPATH": str(ROOT)}


# What both processes do in one start of torchrun, which costs as much as many runs: see `together`.
WORKER = """
import contextlib, json, signal, sys
from pathlib import Path
import pytest
import torch
from part_0.cli import InputError
from part_4 import train
from part_4.distributed import (from_main, gather, gradient_sync, parallelise, process_group, sum_over_processes,
                                world_size)
from tests.part_4.tiny_run import before_update, start_quickly

torch.set_num_threads(1)
folder = Path(sys.argv[1])
with process_group("ddp", "cpu") as process:
    rank = process.rank
    said = {"rank": rank, "world_size": world_size(), "is_main": process.is_main, "gathered": gather({"rank": rank}),
            "sum": sum_over_processes([rank + 1, 0.5], torch.device("cpu"))}
    said["from_main"] = from_main(process, lambda: {"made by": rank})

    def refuse():
        raise InputError(f"refused by {rank}")

    try:
        from_main(process, refuse)
    except InputError as error:
        said["refused"] = str(error)
    weight = torch.nn.Linear(1, 1, bias=False)
    model = parallelise(weight, "ddp", torch.device("cpu"))
    for on in (False, True):
        with gradient_sync(model, on):
            model(torch.tensor([[float(rank + 1)]])).sum().backward()
        said[f"gradient, sync {on}"] = weight.weight.grad.item()
    with pytest.MonkeyPatch.context() as patch:
        start_quickly(patch)
        # All runs share this group: torch cannot safely make several, one after the other, from one start of torchrun.
        patch.setattr(train, "process_group", lambda *arguments: contextlib.nullcontext(process))
        for name, (changes, stop_at) in json.loads(sys.argv[2]).items():
            with pytest.MonkeyPatch.context() as inner:
                if stop_at is not None and rank == 1:  # one of the processes gets a signal
                    before_update(inner, stop_at, lambda: signal.raise_signal(signal.SIGTERM))
                try:
                    said[name] = train.main(train.Config(**changes))
                except SystemExit as end:
                    said[name] = end.code
(folder / f"rank_{rank}.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text") / "text.txt")


@pytest.fixture(scope="module")
def alone(text, tmp_path_factory):
    """The run of one process that those of two are compared with; plain, and with dropout."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        start_quickly(patch)
        train.main(config(text, folder / "run"))
    return folder / "run"


@pytest.fixture(scope="module")
def together(text, alone, tmp_path_factory):
    """The folder of several runs of two processes, and what each process said."""
    folder = tmp_path_factory.mktemp("together")
    with pytest.MonkeyPatch.context() as patch:
        start_quickly(patch)
        for name in ("from_one_ddp", "from_one_fsdp"):  # begun by one process, which crashed after step 10
            with pytest.MonkeyPatch.context() as inner, pytest.raises(Interruption):
                interrupt(inner, 10)
                train.main(config(text, folder / name))
        train.main(config(text, folder / "muon_alone", optimizer="muon"))
    runs = {"ddp": (dict(parallel="ddp"), None), "fsdp": (dict(parallel="fsdp"), None),
            "ddp_micro": (dict(parallel="ddp", micro_batch_size=1), None),
            "fsdp_micro": (dict(parallel="fsdp", micro_batch_size=1), None),
            "fsdp_again": (dict(parallel="fsdp", activation_checkpointing=True), None),
            "muon_ddp": (dict(parallel="ddp", optimizer="muon"), None),
            "muon_fsdp": (dict(parallel="fsdp", optimizer="muon"), None),
            "from_one_ddp": (dict(parallel="ddp", resume="auto"), None),
            "from_one_fsdp": (dict(parallel="fsdp", resume="auto"), None),
            "dropout": (dict(parallel="ddp", dropout=0.3), None),
            "stopped": (dict(parallel="ddp", dropout=0.3, resume="auto"), 4),
            "to_one": (dict(parallel="fsdp"), 6)}
    runs = {name: (vars(config(text, folder / name, **changes)), stop_at) for name, (changes, stop_at) in runs.items()}
    runs["gone_on"] = (runs["stopped"][0], None)
    script = folder / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    job = subprocess.run(torchrun(script, str(folder), json.dumps(runs)), env=environment(), capture_output=True, text=True,
                         timeout=100)
    assert job.returncode == 0, job.stdout + job.stderr
    said = [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)]
    return folder, said, job.stdout


def assert_same_run(out, alone, slack=1e-5):
    """The losses, all other numbers logged, and the final weights are those of one process to within `slack`."""
    ours, theirs = (without_clock(records(run)) for run in (out, alone))
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for record, expected in zip(ours, theirs):
        assert record == pytest.approx(expected, rel=10 * slack, abs=slack), record["step"]
    weights, expected = (load_checkpoint(checkpoint_files(run)[0])["model"] for run in (out, alone))
    assert weights.keys() == expected.keys()
    for name in weights:
        assert torch.allclose(weights[name], expected[name], atol=slack), name
    ours, theirs = (json.loads((run / "summary.json").read_text())["bits_per_byte"] for run in (out, alone))
    assert ours == pytest.approx(theirs, rel=slack)


@unix_only
@pytest.mark.parametrize("name", ["ddp", "fsdp", "ddp_micro", "fsdp_micro", "fsdp_again"])
def test_two_processes_train_like_one_with_the_same_batch(together, alone, name):
    assert_same_run(together[0] / name, alone)


@unix_only
@pytest.mark.parametrize("name", ["muon_ddp", "muon_fsdp"])
def test_muon_in_two_processes_trains_like_in_one(together, name):
    # On processors with bf16 its products run in bf16, which makes a rounding of a gradient 2^16 times as large.
    assert_same_run(together[0] / name, together[0] / "muon_alone", slack=5e-4)


@unix_only
@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp_micro"])
def test_rank_0_alone_writes_and_prints_and_the_others_know_the_same_losses(together, name):
    folder, (first, second), printed = together
    assert first[name][:-1] == records(folder / name)
    losses = [[record["loss"] for record in history if "loss" in record] for history in (first[name], second[name])]
    assert losses[0] == losses[1] and len(losses[0]) == 12
    writers = {path.name.split(".")[-2] for path in (folder / name / "tensorboard").iterdir()}  # a process's number
    assert len(writers) == 1
    assert printed.count(f"the run is in {folder / name};") == 1


@unix_only
def test_a_checkpoint_of_several_processes_is_one_of_a_single_one(together, alone):
    for name in ("ddp", "fsdp"):
        model, tokenizer, state = load_model(checkpoint_files(together[0] / name)[0])
        assert type(state["model"]["head.weight"]) is torch.Tensor and len(state["rng"]) == 2
        expected = load_checkpoint(checkpoint_files(alone)[0])
        ours, theirs = (s["optimizer"]["state"] for s in (state, expected))
        assert ours.keys() == theirs.keys()
        for weight in ours:
            for moment in ours[weight]:
                assert torch.allclose(ours[weight][moment], theirs[weight][moment], atol=1e-5), (weight, moment)


@unix_only
@pytest.mark.parametrize("name", ["from_one_ddp", "from_one_fsdp"])
def test_a_run_of_one_process_goes_on_in_two(together, alone, name):
    assert together[1][0][name][0]["step"] == 8
    assert_same_run(together[0] / name, alone)


@unix_only
def test_a_run_of_two_processes_goes_on_in_one(together, alone, text):
    out = together[0] / "to_one"
    assert together[1][0]["to_one"] == together[1][1]["to_one"] == 143  # both ended, though one alone got the signal
    assert load_newest(out)[0]["step"] == 7
    train.main(config(text, out, resume="yes"))
    assert_same_run(out, alone)


@unix_only
def test_two_processes_stopped_and_resumed_end_bit_for_bit_dropout_and_all(together):
    folder, (first, second), _ = together
    assert first["stopped"] == second["stopped"] == 143 and first["gone_on"][0]["step"] == 5
    ours, theirs = (load_checkpoint(checkpoint_files(folder / name)[0])["model"] for name in ("stopped", "dropout"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert without_clock(records(folder / "stopped")) == without_clock(records(folder / "dropout"))


@unix_only
def test_each_process_has_dropout_of_its_own(together):
    states = load_checkpoint(checkpoint_files(together[0] / "dropout")[0])["rng"]
    assert not torch.equal(states[0]["cpu"], states[1]["cpu"])


@unix_only
def test_what_processes_tell_each_other(together):
    _, said, _ = together
    for rank, mine in enumerate(said):
        assert (mine["rank"], mine["world_size"], mine["is_main"]) == (rank, 2, rank == 0)
        assert mine["gathered"] == [{"rank": 0}, {"rank": 1}] and mine["sum"] == [3.0, 1.0]
        assert mine["from_main"] == {"made by": 0} and mine["refused"] == "refused by 0"


@unix_only
def test_between_micro_batches_gradients_are_added_up_in_each_process_and_only_then_averaged(together):
    # The gradient is the input, 1 in rank 0 and 2 in rank 1: first each its own, then twice it, averaged: (2 + 4) / 2.
    for rank, mine in enumerate(together[1]):
        assert (mine["gradient, sync False"], mine["gradient, sync True"]) == (rank + 1, 3)


def test_one_process_alone_needs_no_group():
    with process_group("none", "cpu") as process:
        assert process == Process(0, 1, 0) and process.is_main and world_size() == 1
        assert sum_over_processes([2, 0.5], torch.device("cpu")) == [2, 0.5] and gather("mine") == ["mine"]
        assert from_main(process, lambda: "made") == "made"

        def refuse():
            raise InputError("no")

        with pytest.raises(InputError, match="^no$"):
            from_main(process, refuse)


def workers(pid):
    """The numbers of a process's children."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    if children.exists():
        return [int(child) for child in children.read_text().split()]
    return [int(child) for child in subprocess.check_output(["pgrep", "-P", str(pid)]).split()]  # macOS


@pytest.mark.slow
@unix_only
def test_a_killed_process_ends_the_job_and_the_run_can_be_gone_on_with(text, alone, tmp_path):
    out = tmp_path / "run"
    c = config(text, out, parallel="ddp", resume="auto", steps=4000, eval_every=4000, save_every=5, log_every=5)
    job = subprocess.Popen(torchrun(ROOT / "part_4" / "train.py", *flags(c)), env=environment(), stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True)
    try:
        while job.poll() is None and len(checkpoint_files(out)) < 2:
            time.sleep(0.01)
        os.kill(workers(job.pid)[-1], signal.SIGKILL)
        printed, errors = job.communicate(timeout=120)
    finally:
        job.kill()
    assert job.returncode not in (0, None)
    # Either the other process notices and says what to do, or torchrun does and says which one was killed.
    assert "--resume auto" in errors or "Signal 9 (SIGKILL)" in errors
    assert printed.count("step     0/4000") == 1  # one process prints
    state, path, damages = load_newest(out)
    assert damages == [] and state["step"] >= 5 and state["step"] % 5 == 0
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        before_update(patch, 2, lambda: signal.raise_signal(signal.SIGTERM))
        train.main(config(text, out, resume="auto", steps=4000, eval_every=4000, save_every=5, log_every=5))
    assert load_newest(out)[0]["step"] == state["step"] + 3


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_without_torchrun_the_command_with_it_is_said(text, tmp_path, monkeypatch, parallel):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(InputError, match=f"torchrun --nproc_per_node=2 part_4/train.py --parallel {parallel}$") as refusal:
        train.main(config(text, tmp_path / "run", parallel=parallel))
    assert "\n" not in str(refusal.value) and not (tmp_path / "run").exists()


def launched(monkeypatch, n):
    for name, value in dict(TORCHELASTIC_RUN_ID="none", RANK="0", WORLD_SIZE=str(n), LOCAL_RANK="0").items():
        monkeypatch.setenv(name, value)


def test_several_processes_without_a_word_how_they_work_together_are_refused(text, tmp_path, monkeypatch):
    launched(monkeypatch, 2)
    with pytest.raises(InputError, match="torchrun started several processes: say with --parallel ddp or fsdp"):
        train.main(config(text, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    launched(monkeypatch, 1)
    train.main(config(text, tmp_path / "run", steps=1))  # one is one, whoever started it


def test_a_device_without_collectives_is_refused(monkeypatch):
    launched(monkeypatch, 2)
    with pytest.raises(InputError, match="--parallel ddp runs on cpu or cuda, not on mps"):
        with process_group("ddp", "mps"):
            pass


@pytest.mark.parametrize("changes, complaint", [
    (dict(batch_size=5), "--batch_size 5 must be divisible by the 2 processes"),
    (dict(micro_batch_size=4), "--micro_batch_size 4 must divide the 2 windows of each process")])
def test_a_batch_that_two_processes_cannot_share_is_refused_before_anything_is_written(text, tmp_path, monkeypatch, changes,
                                                                                        complaint):
    monkeypatch.setattr(train, "process_group", lambda *arguments: contextlib.nullcontext(Process(1, 2, 1)))
    with pytest.raises(InputError, match=complaint):
        train.main(config(text, tmp_path / "run", tokens=str(tmp_path / "tokens"), **changes))
    assert not (tmp_path / "run").exists() and not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("others", [None, "step_00000004.pt"])
def test_processes_that_find_different_checkpoints_are_refused(text, tmp_path, monkeypatch, others):
    out = tmp_path / "run"
    train.main(config(text, out))
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr("part_4.run_state.gather", lambda mine: [mine, others])
    with pytest.raises(InputError, match="found different checkpoints: --out .* must be a folder that all see"):
        train.main(config(text, out, resume="auto"))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    for name, value in dict(TORCHELASTIC_RUN_ID="x", RANK="1", WORLD_SIZE="2", LOCAL_RANK="1").items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match="fewer GPUs .1. than torchrun starts processes"):
        with process_group("ddp", "cuda"):
            pass
