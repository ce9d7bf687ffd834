"""Experts spread over two gloo processes give what one process gives with both processes' tokens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from part_4.distributed import process_group
from part_5.expert_parallel import ExpertParallel, by_expert, shard_experts
from part_5.experts import Experts
from part_5.moe import MoE

ROOT = Path(__file__).resolve().parents[2]
unix_only = pytest.mark.skipif(sys.platform == "win32", reason="torch for Windows is built without what torchrun needs")
C, D_HIDDEN = 8, 16

# Name to (tokens of each process, n_layer, arguments of MoE, a bias of the router that leaves no choice or None)
CASES = {
    "plain": ((10, 10), 1, dict(n_expert=4, top_k=2), None),
    "one expert each": ((5, 5), 1, dict(n_expert=2, top_k=1), None),
    "several layers": ((9, 6), 2, dict(n_expert=8, top_k=3, score="sigmoid"), None),
    "unequal numbers of tokens": ((13, 3), 1, dict(n_expert=4, top_k=2), None),
    "shared experts": ((7, 9), 1, dict(n_expert=6, top_k=2, n_shared=2), None),
    "a process without tokens": ((0, 7), 2, dict(n_expert=4, top_k=2), None),
    "all to rank 0": ((6, 9), 2, dict(n_expert=4, top_k=2), [9, 9, 0, 0]),
    "all to rank 1": ((6, 9), 2, dict(n_expert=4, top_k=2), [0, 0, 9, 9]),
    "all to one expert": ((6, 9), 1, dict(n_expert=4, top_k=1), [0, 0, 0, 9]),
    "each process's tokens to its own experts": ((8, 8), 1, dict(n_expert=4, top_k=2), "own"),
    "capacity": ((12, 20), 1, dict(n_expert=4, top_k=2, capacity_factor=0.6), None),
}


def build(n_layer, arguments, bias):
    """MoE layers one after the other, the same in every process, in training mode."""
    torch.manual_seed(0)
    model = nn.Sequential(*(MoE(C, D_HIDDEN, **arguments) for _ in range(n_layer)))
    for layer in model:
        nn.init.normal_(layer.router.gate.weight)  # decided enough to be uneven
        for weight in layer.experts.parameters():  # large enough that several layers leave something
            nn.init.normal_(weight, std=0.3)
        if isinstance(bias, list):
            layer.router.bias.copy_(torch.tensor(bias))
    return model


def batch(tokens, bias):
    """Each process's input and the gradient that reaches its output: two lists of (N, C)."""
    torch.manual_seed(1)
    inputs, upstream = ([torch.randn(N, C) for N in tokens] for _ in range(2))
    if bias == "own":  # the first column tells whose token it is: see `point_gate`
        inputs = [x + sign * 5 * torch.eye(C)[0] for x, sign in zip(inputs, (1, -1))]
    return inputs, upstream


def point_gate(model, bias):
    """With bias "own": tokens with a positive first column choose experts 0 and 1, the others 2 and 3."""
    if bias == "own":
        with torch.no_grad():
            model[0].router.gate.weight[:, 0] = torch.tensor([5.0, 5, -5, -5])


def run(model, x, upstream):
    """Forward and backward; the gradients add up in `model`. Returns output and gradient of the input."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.backward(upstream)
    return y.detach(), x.grad


def work(folder):
    """What each of the two processes does; all cases in one start of torchrun, which costs seconds."""
    torch.set_num_threads(1)
    with process_group("ddp", "cpu") as process:
        said = {}
        for name, (tokens, n_layer, arguments, bias) in CASES.items():
            model = build(n_layer, arguments, bias)
            point_gate(model, bias)
            shard_experts(model)
            inputs, upstream = batch(tokens, bias)
            y, x_grad = run(model, inputs[process.rank], upstream[process.rank])
            said[name] = dict(y=y, x_grad=x_grad, weights=dict(model.state_dict()),
                              grads={key: weight.grad for key, weight in model.named_parameters()},
                              n_dropped=sum(layer.n_dropped for layer in model), n_idle=[layer.n_idle for layer in model],
                              load=torch.stack([layer.load for layer in model]))

        model = build(1, dict(n_expert=4, top_k=2), None)
        shard_experts(model)
        with torch.autocast("cpu", torch.bfloat16):
            said["bf16"] = model(batch((10, 10), None)[0][process.rank]).detach()

        groups = [dist.new_group([rank]) for rank in (0, 1)]  # every process must make all of them
        model = build(1, dict(n_expert=3, top_k=2), None)
        try:
            shard_experts(model)
        except ValueError as error:
            said["refused"] = str(error)
        shard_experts(model, groups[process.rank])  # three experts on one process
        said["alone"] = run(model, *(part[process.rank] for part in batch((4, 6), None)))
    torch.save(said, folder / f"rank_{process.rank}.pt")


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What the two processes said, by rank."""
    folder = tmp_path_factory.mktemp("together")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
                   "GLOO_SOCKET_IFNAME": "lo0" if sys.platform == "darwin" else "lo"}
    job = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m",
                          "tests.part_5.test_expert_parallel", str(folder)], env=environment, cwd=ROOT, capture_output=True,
                         text=True, timeout=100)
    assert job.returncode == 0, job.stdout + job.stderr
    return [torch.load(folder / f"rank_{rank}.pt") for rank in (0, 1)]


def truth(name):
    """One process with whole layers: outputs and input gradients of each process's tokens, and the layers."""
    tokens, n_layer, arguments, bias = CASES[name]
    model = build(n_layer, arguments, bias)
    point_gate(model, bias)
    inputs, upstream = batch(tokens, bias)
    if name == "capacity":  # which is each process's own: not the room for the tokens of both
        return *zip(*(run(model, *shares) for shares in zip(inputs, upstream))), model
    y, x_grad = run(model, torch.cat(inputs), torch.cat(upstream))
    return y.split(tokens), x_grad.split(tokens), model


def close(ours, theirs):
    return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def is_spread(name):
    return "experts." in name


def block(weight, rank):
    """The half of a whole stack of experts that a process holds."""
    return weight.chunk(2)[rank]


by_case = pytest.mark.parametrize("name", CASES)


@unix_only
@by_case
def test_outputs_and_input_gradients_are_those_of_one_process_with_all_tokens(together, name):
    outputs, grads, _ = truth(name)
    for rank, mine in enumerate(together):
        assert close(mine[name]["y"], outputs[rank]) and close(mine[name]["x_grad"], grads[rank])
    assert max(output.abs().amax() for output in outputs if len(output)) > 0.05


@unix_only
@by_case
def test_an_owner_has_the_gradients_of_its_experts_from_the_tokens_of_both(together, name):
    for key, weight in truth(name)[2].named_parameters():
        if is_spread(key):
            for rank, mine in enumerate(together):
                assert close(mine[name]["grads"][key], block(weight.grad, rank)), (key, rank)


@unix_only
@by_case
def test_all_other_gradients_summed_over_the_processes_are_those_of_one(together, name):
    first, second = (mine[name]["grads"] for mine in together)
    others = {key: weight.grad for key, weight in truth(name)[2].named_parameters() if not is_spread(key)}
    assert len(others) == CASES[name][1] * (3 if name == "shared experts" else 1)
    for key, grad in others.items():
        assert close(first[key] + second[key], grad), key


@unix_only
@by_case
def test_each_process_holds_its_block_of_the_experts_under_the_names_of_the_whole(together, name):
    whole = truth(name)[2]
    for rank, mine in enumerate(together):
        assert mine[name]["weights"].keys() == whole.state_dict().keys()
        for key, weight in whole.state_dict().items():
            assert torch.equal(mine[name]["weights"][key], block(weight, rank) if is_spread(key) else weight), key
        assert mine[name]["n_idle"] == [layer.n_idle for layer in whole]


@unix_only
@pytest.mark.parametrize("name, owner", [("all to rank 0", 0), ("all to rank 1", 1), ("all to one expert", 1)])
def test_experts_that_no_row_reaches_have_gradients_of_zero_not_none(together, name, owner):
    idle, busy = together[1 - owner][name]["grads"], together[owner][name]["grads"]
    for key in filter(is_spread, idle):
        assert (idle[key] == 0).all() and (busy[key] != 0).any(), key


@unix_only
def test_capacity_is_that_of_each_process_own_tokens(together):
    # ceil(0.6 x 12 x 2 / 4) = 4 rows of each expert from rank 0, ceil(0.6 x 20 x 2 / 4) = 6 from rank 1.
    for mine, capacity in zip(together, (4, 6)):
        load = mine["capacity"]["load"][0]
        assert mine["capacity"]["n_dropped"] == (load - capacity).clamp(min=0).sum() > 0


@unix_only
def test_under_autocast_the_rows_come_back_in_bf16(together):
    model, inputs = build(1, dict(n_expert=4, top_k=2), None), batch((10, 10), None)[0]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(torch.cat(inputs)).detach().split((10, 10))
    for mine, output in zip(together, outputs):
        assert mine["bf16"].dtype == torch.bfloat16 and torch.allclose(mine["bf16"], output, atol=1e-2)


@unix_only
def test_experts_that_two_processes_cannot_share_evenly_are_refused_and_a_group_of_one_holds_them_all(together):
    inputs, upstream = batch((4, 6), None)
    for rank, mine in enumerate(together):
        assert mine["refused"] == "3 experts cannot be spread evenly over 2 processes"
        expected = run(build(1, dict(n_expert=3, top_k=2), None), inputs[rank], upstream[rank])
        assert all(close(*pair) for pair in zip(mine["alone"], expected))


@pytest.fixture
def group_of_one(monkeypatch):
    if sys.platform != "win32":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("width", [8, 6])  # 6 x 4 bytes are no multiple of 16: torch's grouped product cannot take them
def test_in_one_process_it_equals_plain_experts_to_the_last_bit(group_of_one, width):
    torch.manual_seed(0)
    experts = Experts(3, width, D_HIDDEN)
    before = torch.get_rng_state()
    spread = ExpertParallel(experts)
    assert torch.equal(torch.get_rng_state(), before)  # dropout goes on as it would have
    ends = torch.tensor([4, 4, 9], dtype=torch.int32)  # expert 1 has no row
    x, upstream = torch.randn(9, 2 * width), torch.randn(9, width)  # half of x is taken: rows that are not contiguous
    for ours, theirs in zip(run(lambda rows: spread(rows[:, :width], ends), x, upstream),
                            run(lambda rows: experts(rows[:, :width], ends), x, upstream)):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(spread.parameters(), experts.parameters()):
        assert ours.data_ptr() != theirs.data_ptr() and torch.equal(ours.grad, theirs.grad)


def test_a_share_is_not_cut_once_more(group_of_one):
    moe = MoE(C, D_HIDDEN, n_expert=4, top_k=2)
    shard_experts(moe)
    with pytest.raises(ValueError, match="these 4 experts are the share of one process already"):
        shard_experts(moe)


def test_sorting_worked_by_hand():
    # Rank 0 sends one row of expert 0 and two of expert 1, rank 1 two of expert 0 and none of expert 1:
    # the rows come as 0 1 1 | 0 0, so expert 0 has rows 0, 3 and 4.
    order, ends = by_expert(torch.tensor([[1, 2], [2, 0]]))
    assert order.tolist() == [0, 3, 4, 1, 2] and ends.tolist() == [3, 5] and ends.dtype == torch.int32


@given(st.integers(1, 4).flatmap(lambda n_expert: st.lists(
    st.lists(st.integers(0, 3), min_size=n_expert, max_size=n_expert), min_size=1, max_size=4)))
def test_sorting_keeps_the_rows_of_an_expert_in_the_order_of_their_senders(counts):
    came = [(expert, sender) for sender, row in enumerate(counts) for expert, count in enumerate(row) for _ in range(count)]
    order, ends = by_expert(torch.tensor(counts))
    assert [came[place] for place in order.tolist()] == sorted(came)
    assert ends.tolist() == [sum(row[expert] for row in counts for expert in range(last + 1))
                             for last in range(len(counts[0]))]


if __name__ == "__main__":
    work(Path(sys.argv[1]))
