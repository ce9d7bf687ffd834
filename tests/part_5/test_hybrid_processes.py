"""Experts in two gloo processes: trained like in one, the same routers everywhere, and the load is that of both.

The balance loss is no mean over tokens: each process has that of its own share of the batch, and the mean of these is what
is learned from. One process does exactly that when its micro-batches are those shares.
"""

import json
import subprocess
import sys

import pytest
import torch

from part_2.checkpoint import load_checkpoint
from part_4.checkpoint import checkpoint_files, load_newest
from part_5 import train
from part_5.hybrid import load_model, moe_layers
from tests.part_4.test_distributed import environment, torchrun
from tests.part_4.tiny_run import TINY, make_text, records, start_quickly, without_clock

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32",
                                                   reason="torch for Windows is built without what torchrun needs")]
LAST_ONES = {"balance_loss", "z_loss"}  # are rank 0's own, of its last micro-batch

# All runs in one start of torchrun: it costs as much as many of them.
WORKER = """
import contextlib, json, os, signal, sys
from pathlib import Path
import pytest
import torch
from part_4 import train as part_4_train
from part_4.distributed import process_group
from part_5 import train
from part_5.hybrid import moe_layers
from tests.part_4.tiny_run import before_update, start_quickly

torch.set_num_threads(1)
folder, said, seen = Path(sys.argv[1]), {}, []
after_update = train.after_update

def watched(model):
    own = [layer.load.tolist() for layer in moe_layers(model)]
    figures = after_update(model)
    seen.append((own, [layer.router.bias.tolist() for layer in moe_layers(model)], figures))
    return figures

with process_group("ddp", "cpu") as process, pytest.MonkeyPatch.context() as patch:
    start_quickly(patch)
    patch.setattr("part_4.optimizer.pick_precision", lambda *arguments: torch.float32)  # Muon's: bf16 rounds too much
    patch.setattr(train, "after_update", watched)
    # All runs share this group: torch cannot safely make several, one after the other, from one start of torchrun.
    patch.setattr(part_4_train, "process_group", lambda *arguments: contextlib.nullcontext(process))
    for name, (changes, stop_at) in json.loads(sys.argv[2]).items():
        seen.clear()
        with pytest.MonkeyPatch.context() as inner:
            if stop_at is not None and process.rank == 1:  # one of the processes gets a signal
                before_update(inner, stop_at, lambda: signal.raise_signal(signal.SIGTERM))
            try:
                train.main(train.Config(**changes))
            except SystemExit as end:
                assert end.code == 143
        said[name] = list(seen)
(folder / f"rank_{process.rank}.json").write_text(json.dumps(said))
sys.stdout.flush()
os._exit(0)  # what is tested is done; after several FSDP runs the ordinary exit now and then aborts in a thread of torch's
"""


def config(text, out, **changes):
    return train.Config(**{**TINY, "n_layer": 2, "n_expert": 4, "n_shared": 1, "balance_weight": 0.0, "bias_rate": 0.02,
                           "z_weight": 0.1, "eval_every": 12, "save_every": 12, "data": str(text), "out": str(out),
                           "tokens": str(text.parent / "tokens"), **changes})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text") / "text.txt")


ALONE = dict(plain=dict(), balanced=dict(balance_weight=0.5, micro_batch_size=2, moe_every=2, alpha=0.5),
             muon=dict(optimizer="muon"))


@pytest.fixture(scope="module")
def runs(text, tmp_path_factory):
    """The folder of several runs of one process and of two, and what the two saw at each step: their own load, the biases
    after it, and the figures."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        start_quickly(patch)
        patch.setattr("part_4.optimizer.pick_precision", lambda *arguments: torch.float32)
        for name, options in ALONE.items():
            train.main(config(text, folder / name, **options))
    together = {"ddp": (dict(parallel="ddp"), None), "fsdp": (dict(parallel="fsdp"), None),
                "ddp_balanced": (ALONE["balanced"] | dict(parallel="ddp", micro_batch_size=None), None),
                "fsdp_balanced": (ALONE["balanced"] | dict(parallel="fsdp", micro_batch_size=None), None),
                "fsdp_again": (dict(parallel="fsdp", micro_batch_size=1, activation_checkpointing=True), None),
                "fsdp_muon": (dict(parallel="fsdp", optimizer="muon"), None),
                "ddp_dropping": (dict(parallel="ddp", capacity_factor=0.5, noisy=True, first_dense=1), None),
                "to_one": (dict(parallel="fsdp"), 6)}
    together = {name: (vars(config(text, folder / name, **options)), stop_at)
                for name, (options, stop_at) in together.items()}
    script = folder / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    job = subprocess.run(torchrun(script, str(folder), json.dumps(together)), env=environment(), capture_output=True,
                         text=True, timeout=200)
    assert job.returncode == 0, job.stdout + job.stderr
    return folder, [json.loads((folder / f"rank_{rank}.json").read_text()) for rank in (0, 1)]


def assert_same_run(out, alone, slack=1e-5):
    """The losses, all other numbers logged but the last pass's, the weights and the biases are those of one process."""
    ours, theirs = ([{name: value for name, value in record.items() if name not in LAST_ONES} for record in
                     without_clock(records(run))] for run in (out, alone))
    for record, expected in zip(ours, theirs, strict=True):
        assert record == pytest.approx(expected, rel=10 * slack, abs=slack), record["step"]
    weights, expected = (load_checkpoint(checkpoint_files(run)[0])["model"] for run in (out, alone))
    assert weights.keys() == expected.keys()
    for name in weights:
        assert torch.allclose(weights[name], expected[name], atol=slack), name
    assert all(torch.equal(weights[name], expected[name]) for name in weights if name.endswith("router.bias"))


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp_again"])
def test_two_processes_train_experts_like_one_with_the_same_batch(runs, name):
    assert_same_run(runs[0] / name, runs[0] / "plain")


@pytest.mark.parametrize("name", ["ddp_balanced", "fsdp_balanced"])
def test_the_balance_loss_is_the_mean_of_those_of_the_processes_shares(runs, name):
    assert_same_run(runs[0] / name, runs[0] / "balanced")


def test_muon_with_experts_that_are_shared_out_trains_like_in_one_process(runs):
    assert_same_run(runs[0] / "fsdp_muon", runs[0] / "muon")


@pytest.mark.parametrize("name", ["ddp", "fsdp", "fsdp_balanced", "ddp_dropping"])
def test_the_routers_of_both_processes_have_the_bias_that_the_load_of_both_gives(runs, name):
    first, second = (said[name] for said in runs[1])
    assert len(first) == len(second) == 12
    bias, apart = torch.zeros(len(first[0][0]), 4), False
    for (own, ours, figures), (other, theirs, _) in zip(first, second):
        load = torch.tensor(own) + torch.tensor(other)
        assert load.sum(-1).tolist() == [4 * 16 * 2] * len(load)  # tokens of the whole batch, two choices each
        moved = torch.sign(load.mean(-1, keepdim=True) - load)
        apart = apart or not torch.equal(moved, torch.sign(16.0 - torch.tensor(own)))  # rank 0 alone would do otherwise
        bias += 0.02 * moved
        assert ours == theirs and torch.allclose(torch.tensor(ours), bias, atol=1e-6)
        assert figures["max_violation"] == pytest.approx((load.amax(-1) / 32 - 1).mean().item(), abs=1e-6)
    assert apart


def test_the_share_that_is_dropped_is_that_of_both_processes(runs):
    # Each has 32 tokens, 64 choices, and its experts take ceil(0.5 * 64 / 4) = 8 of them.
    for own, other in zip(*(said["ddp_dropping"] for said in runs[1])):
        dropped = sum(max(0, n - 8) for load in (own[0], other[0]) for layer in load for n in layer)
        assert own[2]["dropped"] == other[2]["dropped"] == pytest.approx(dropped / 128) and dropped > 0


def test_a_checkpoint_of_two_processes_holds_all_experts_and_goes_on_in_one(runs, text, monkeypatch):
    start_quickly(monkeypatch)
    out = runs[0] / "to_one"
    model, _, state = load_model(checkpoint_files(out)[0])
    assert load_newest(out)[0]["step"] == 7 and len(state["rng"]) == 2
    assert [layer.experts.expand.weight.shape[0] for layer in moe_layers(model)] == [4, 4]
    assert any(layer.router.bias.abs().max() > 0 for layer in moe_layers(model))
    train.main(config(text, out, resume="yes"))
    assert_same_run(out, runs[0] / "plain")
