"""Lesson 5.2 - what do experts on several processes send each other, and do they still compute the same?

Starts two gloo processes with torchrun, each with half of the experts and with text of its own, runs one MoE layer forward
and backward, and compares with all experts and all text in one process. What to see: each rank needs the experts of the
other; the differences are those of rounding; and what is sent grows with K, also where the FLOPs do not.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import copy
import os
import shlex
import subprocess
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.distributed as dist
from torch import nn

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, GREEN, ORANGE, figure_path, heatmap, plt, save_figure
from part_2.byte_tokenizer import N_BYTES, ByteTokenizer
from part_2.corpus import DATA_HELP, load_corpus
from part_4.distributed import gather, process_group
from part_5.balancing import expert_load
from part_5.expert_parallel import shard_experts
from part_5.moe import MoE
from part_5.router import route

P, E = 2, 8  # processes and experts
RESULTS = ("output", "input gradient", "W_gate, W_up gradient", "W_down gradient", "router gradient")


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    n_tokens: int = option(2048, "bytes of text of each process")
    d_model: int = option(64, "width C")
    d_expert: int = option(128, "inner width H of an expert")
    seed: int = option(0, "seed of the weights")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_tokens=128, d_model=16, d_expert=16)

    def __post_init__(self):
        check_positive(self, "n_tokens", "d_model", "d_expert")


def read_text(config):
    """Text from P places: (P, N) ids."""
    ids = ByteTokenizer().encode_to_tensor(load_corpus(config.data)).long()
    if len(ids) < P * config.n_tokens:
        raise InputError(f"--data {config.data} has {len(ids)} bytes, fewer than {P} times --n_tokens {config.n_tokens}")
    return torch.stack([share[:config.n_tokens] for share in ids.tensor_split(P)])


def passes(moe, x, upstream):
    """Forward and backward. Returns what RESULTS names."""
    x = x.detach().requires_grad_()
    y = moe(x)
    y.backward(upstream)
    return y, x.grad, moe.experts.expand.weight.grad, moe.experts.contract.weight.grad, moe.router.gate.weight.grad


def compare(config, rank):
    """How far apart the results of this process are from those of one alone, its load (E,), and the router's logits."""
    set_seed(config.seed)  # the same weights in every process
    moe, x = MoE(config.d_model, config.d_expert, E, top_k=2), nn.Embedding(N_BYTES, config.d_model)(read_text(config))
    upstream = torch.randn(x.shape) / (P * config.n_tokens)  # (P, N, C), as of a mean over all tokens
    whole = copy.deepcopy(moe)
    shard_experts(moe)
    ours, theirs = passes(moe, x[rank], upstream[rank]), passes(whole, x, upstream)
    dist.all_reduce(ours[-1])  # the router's alone: those of the experts are sums already
    shares = (theirs[0][rank], theirs[1][rank], theirs[2].chunk(P)[rank], theirs[3].chunk(P)[rank], theirs[4])
    apart = [((our - their).abs().max() / full.abs().max()).item() for our, their, full in zip(ours, shares, theirs)]
    return apart, moe.load, whole.router(x).logits.detach()


def rows_between(logits, top_k):
    """How many rows each rank sends to each, (P, P); logits: the router's, (P, N, E)."""
    return torch.stack([expert_load(route(own, top_k).experts, E) for own in logits]).view(P, P, -1).sum(-1)


def draw(config, apart, rows, logits):
    fig, (ax_rows, ax_apart, ax_cost) = plt.subplots(1, 3, figsize=(14, 4.6), width_ratios=(5, 4, 4))
    heatmap(ax_rows, rows, xlabel="to expert (of rank)", ylabel="from rank", fmt="{:.0f}", yticks=range(P), vmin=0,
            xticks=[f"{e}\n({e * P // E})" for e in range(E)])
    ax_rows.axvline(E / P - 0.5, color="white", linewidth=6)
    ax_rows.set(title=f"rows sent, {config.n_tokens:,} tokens a rank, K = 2")
    bars = ax_apart.barh([name.replace(" g", "\ng") for name in RESULTS], [max(value, 1e-9) for value in apart], color=BLUE)
    ax_apart.bar_label(bars, [f"{value:.0e}" if value else "0" for value in apart], padding=3)
    ax_apart.axvline(1e-5, color="black", linestyle="--", linewidth=1)
    ax_apart.set(xscale="log", xlim=(1e-9, 1e-4), xlabel="largest difference / largest value", title="against one process")
    ax_apart.invert_yaxis()
    C, H, Ks = config.d_model, config.d_expert, torch.arange(1, E + 1)
    sent = torch.stack([rows_between(logits, K) for K in Ks.tolist()])  # (E, P, P)
    leaving = sent.sum((1, 2)) - sent.diagonal(dim1=1, dim2=2).sum(1)
    ax_cost.plot(Ks, Ks, color=BLUE, label="bytes, even load")
    ax_cost.plot(Ks, leaving / (config.n_tokens * (P - 1)), "o", color=BLUE, label="bytes, counted")
    ax_cost.plot(Ks, Ks, color=ORANGE, linestyle=":", linewidth=4, label="FLOPs, width H")
    ax_cost.plot(Ks, Ks / Ks, color=GREEN, linestyle="-.", label="FLOPs, width H / K")
    ax_cost.set(xticks=Ks, xlabel="experts of a token, K", ylabel="per token, times that of K = 1", title="what K costs")
    ax_cost.legend(fontsize=10)
    return save_figure(
        fig, figure_path(__file__, "expert_parallel", config.quick), title="Experts spread over processes",
        caption=f"Left: {P} processes with {E // P} of {E} experts each, on text of their own. Middle: output and gradients "
                f"differ by {max(apart):.1e} at most from one process's with all of both (dashed: 1e-5). Right: 4 K C "
                "numbers a token, forward and backward, of which (P - 1)/P leave their process under even load, against "
                f"18 K C H FLOPs of its experts; in fp32 with C = {C}, H = {H} and K = 1: {16 * C * (P - 1) // P:,} bytes, "
                f"{18 * C * H:,} FLOPs. Both grow with K; where experts are 1/K as wide, only the bytes do.",
        command=command_line(__file__, config))


def main(config):
    if "TORCHELASTIC_RUN_ID" not in os.environ:  # start this script again, in P processes
        read_text(config)  # refused here, if it is
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={P}", __file__]
        if subprocess.run([sys.executable, *words, *shlex.split(command_line(__file__, config))[2:]]).returncode:
            raise InputError("a process failed: see above")
        return
    with process_group("ddp", "cpu") as process:
        apart, loads, logits = zip(*gather(compare(config, process.rank)))
        if not process.is_main:
            return
        apart = [max(several) for several in zip(*apart)]
        for name, value in zip(RESULTS, apart):
            print(f"{name:22s} largest difference / largest value {value:.1e}")
        for rank, load in enumerate(loads):
            for to, rows in enumerate(load.view(P, -1).sum(1)):
                print(f"rank {rank} to rank {to}: {rows:6.0f} rows, {rows * config.d_model * 4:9,.0f} bytes, as many back")
        print(draw(config, apart, torch.stack(loads), logits[0]))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
