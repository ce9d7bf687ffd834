"""Lesson 9.5: two gloo processes learn what one does from the same answers, and end together."""

import contextlib
import dataclasses
import json
import subprocess

import pytest
import torch

from part_0.cli import InputError
from part_2.checkpoint import load_checkpoint
from part_4.checkpoint import checkpoint_files, load_newest
from part_4.distributed import Process
from part_6.chat_model import load_model
from part_9 import train_grpo
from tests.part_4.test_distributed import environment, launched, torchrun, unix_only
from tests.part_8.tiny_stages import make_reward_model, make_sft
from tests.part_9.test_train_grpo import config, records, short_answers, without_clock, write_reward

# What both processes do in one start of torchrun, which costs as much as many runs: see `together`.
WORKER = """
import contextlib, json, signal, sys
from pathlib import Path
import pytest
import torch
from part_0.cli import InputError
from part_4.distributed import process_group
from part_9 import train_grpo

torch.set_num_threads(1)
folder, said = Path(sys.argv[1]), {}
train_grpo.reference_loss = lambda *arguments: {"val_loss": 1.0}
gather_groups = train_grpo.gather_groups
with process_group("ddp", "cpu") as process:
    train_grpo.process_group = lambda *arguments: contextlib.nullcontext(process)  # all runs share this group
    for name, (changes, stop_at) in json.loads(sys.argv[2]).items():
        def gather(*arguments):
            if arguments[4] == stop_at and process.rank == 1:  # one of the processes gets a signal
                signal.raise_signal(signal.SIGTERM)
            return gather_groups(*arguments)

        train_grpo.gather_groups = gather
        try:
            said[name] = train_grpo.main(train_grpo.Config(**changes))
        except SystemExit as end:
            said[name] = end.code
        except InputError as error:
            said[name] = str(error)
(folder / f"rank_{process.rank}.json").write_text(json.dumps(said))
"""
# With half a batch sampled at a time, one process draws what two do.
PLAIN = dict(rollout_size=4, n_held_out=4, steps=4)
MANY = dict(rollout_size=8, batch_size=16, n_prompts=16, minibatch_size=5, reward="verifier", resample=1, overlong="mask",
            block_size=3, entropy_coef=0.01, beta=0.5, aggregation="sequence", steps=3, no_end_penalty=0.3, group_size=4)
UNEVEN = dict(rollout_size=2, batch_size=4, group_size=2, minibatch_size=3, reward="{lengths}", kl="k2", kl_weighted=True,
              aggregation="constant", steps=3, epochs=3)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    path = tmp_path_factory.mktemp("stages")
    make_sft(path / "sft.pt", short_answers())
    make_reward_model(path / "rm.pt")
    write_reward(path / "lengths.py", "return [float(len(answer)) + 0.1 * answer.count('e') for answer in answers]")
    # asked a second time, the process of rank 1 cannot answer
    write_reward(path / "broken.py", """calls.append(len(answers))
    if len(calls) > 1 and os.environ.get("RANK") == "1":
        raise LookupError("no colour")
    return [float(len(answer)) for answer in answers]
import os
calls = []""")
    return path


def run_config(stages, out, changes, **more):
    changes = {name: value.format(lengths=f"{stages}/lengths.py:reward") if name == "reward" else value
               for name, value in changes.items()}
    return config(stages, out, **{**changes, **more})


@pytest.fixture(autouse=True)
def quick_summary(monkeypatch):
    monkeypatch.setattr(train_grpo, "reference_loss", lambda *arguments: {"val_loss": 1.0})


@pytest.fixture(scope="module")
def alone(stages, tmp_path_factory):
    """The runs of one process that those of two are compared with."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_grpo, "reference_loss", lambda *arguments: {"val_loss": 1.0})
        for name, changes in (("plain", PLAIN), ("many", MANY), ("uneven", UNEVEN)):
            train_grpo.main(run_config(stages, folder / name, changes))
    return folder


@pytest.fixture(scope="module")
def together(stages, alone, tmp_path_factory):
    """The folder of several runs of two processes, and what each process said."""
    folder = tmp_path_factory.mktemp("together")
    runs = {name: (run_config(stages, folder / name, changes, parallel="ddp"), stop_at) for name, changes, stop_at in (
        ("plain", PLAIN, None), ("many", MANY, None), ("uneven", UNEVEN, None), ("to_one", PLAIN, 1),
        ("stopped", PLAIN, 1), ("broken", {**PLAIN, "reward": f"{stages}/broken.py:reward", "n_held_out": 0}, None))}
    runs["gone_on"] = (dataclasses.replace(runs["stopped"][0], resume="auto"), None)
    runs = {name: (vars(one), stop_at) for name, (one, stop_at) in runs.items()}
    script = folder / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    job = subprocess.run(torchrun(script, str(folder), json.dumps(runs)), env=environment(), capture_output=True, text=True,
                         timeout=200)
    assert job.returncode == 0, job.stdout + job.stderr
    return folder, [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)], job.stdout


def assert_same_run(out, alone):
    """All numbers logged, and the final weights, are those of one process but for rounding."""
    ours, theirs = (list(map(without_clock, records(run))) for run in (out, alone))
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for record, expected in zip(ours, theirs):
        assert record == pytest.approx(expected, rel=1e-4, abs=1e-5), record["step"]
    newest, expected = (load_checkpoint(checkpoint_files(run)[0]) for run in (out, alone))
    assert newest["step"] == expected["step"]
    for name, weight in expected["model"].items():
        assert torch.allclose(newest["model"][name], weight, atol=1e-5), name
    assert (out / "samples.jsonl").read_text().count("\n") == len(ours)
    ours, theirs = (without_clock(json.loads((run / "summary.json").read_text())) for run in (out, alone))
    assert ours.pop("device") == theirs.pop("device") == "cpu"
    assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@unix_only
@pytest.mark.parametrize("name", ["plain", "many", "uneven"])
def test_two_processes_learn_what_one_does_from_the_same_batch(name, together, alone):
    assert_same_run(together[0] / name, alone / name)


@pytest.mark.slow
@unix_only
def test_rank_0_alone_writes_and_prints_and_the_other_knows_the_same_numbers(together):
    folder, (first, second), printed = together
    for name in ("plain", "many", "uneven"):
        mine, other = ([without_clock(record) for record in said[name] if "score" in record] for said in (first, second))
        assert mine == other == list(map(without_clock, records(folder / name)))
        assert first[name][-1]["steps"] == len(mine)
        assert len({path.name.split(".")[-2] for path in (folder / name / "tensorboard").iterdir()}) == 1  # one writer
        assert printed.count(f"the run is in {folder / name};") == 1


@pytest.mark.slow
@unix_only
def test_a_signal_to_one_process_ends_both_with_a_checkpoint_that_one_or_two_go_on_from(together, alone, stages):
    folder, (first, second), printed = together
    for name in ("to_one", "stopped"):
        assert first[name] == second[name] == 143
    assert load_newest(folder / "to_one")[0]["step"] == 2
    assert printed.count("stopped at step 2, which is saved") == 2  # of two runs
    train_grpo.main(run_config(stages, folder / "to_one", PLAIN, resume="yes"))
    assert_same_run(folder / "to_one", alone / "plain")
    assert first["gone_on"][0]["step"] == second["gone_on"][0]["step"] == 2
    ours, theirs = (load_checkpoint(folder / name / "best.pt")["model"] for name in ("stopped", "plain"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(map(without_clock, records(folder / "stopped"))) == list(map(without_clock, records(folder / "plain")))


@pytest.mark.slow
@unix_only
def test_a_reward_function_that_fails_in_one_process_ends_both_in_the_same_line_with_a_checkpoint(together):
    folder, (first, second), _ = together
    assert first["broken"] == second["broken"] and "\n" not in first["broken"]
    assert first["broken"].startswith("the reward function raised LookupError: no colour, for the prompt '")
    assert [path.name for path in checkpoint_files(folder / "broken")] == ["step_00000001.pt"]
    assert [record["step"] for record in records(folder / "broken")] == [0]


@pytest.mark.slow
@unix_only
def test_what_two_processes_saved_is_a_model_like_any_other(together):
    model, _, state = load_model(together[0] / "plain" / "best.pt")
    assert type(state["model"]["head.weight"]) is torch.Tensor and model.n_params() > 0


def test_without_torchrun_the_command_with_it_is_said(stages, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with pytest.raises(InputError, match="torchrun --nproc_per_node=2 part_9/train_grpo.py --parallel ddp$"):
        train_grpo.main(config(stages, tmp_path / "run", parallel="ddp"))
    assert not (tmp_path / "run").exists()


def test_several_processes_without_a_word_how_they_work_together_are_refused(stages, tmp_path, monkeypatch):
    launched(monkeypatch, 2)
    with pytest.raises(InputError, match="torchrun started several processes: say with --parallel ddp"):
        train_grpo.main(config(stages, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("changes, complaint", [
    (dict(batch_size=12), "--batch_size 12 must be a multiple of --group_size 4 times 2 processes"),
    (dict(minibatch_size=1), "--minibatch_size 1 not be less than these")])
def test_a_batch_that_two_processes_cannot_share_is_refused_before_anything_is_written(changes, complaint, stages, tmp_path,
                                                                                        monkeypatch):
    monkeypatch.setattr(train_grpo, "process_group", lambda *arguments: contextlib.nullcontext(Process(1, 2, 1)))
    with pytest.raises(InputError, match=complaint):
        train_grpo.main(config(stages, tmp_path / "run", parallel="ddp", **changes))
    assert not (tmp_path / "run").exists()
