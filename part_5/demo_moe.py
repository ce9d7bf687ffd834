"""Lesson 5.2 - what does a mixture-of-experts layer cost beside a dense layer of the same active FLOPs?

Times forward and backward pass of the MoE layer, of one SwiGLU of K times an expert's hidden width, and of the form that
older tutorials show, a loop over K x E masks; the three take turns, in every order, and the median of the ratios within a
round counts. What to see: left, what dispatch does to a handful of tokens; right, that with many tokens the layer costs
little more than the dense one, and that with few it cannot: every expert's weights are read for a few tokens.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import itertools
import time
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from torch import nn
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, DTYPES, autocast, describe, pick_device, set_seed, supported_precisions, synchronize
from part_0.plotting import BLACK, COLORS, figure_path, plt, save_figure
from part_0.roofline import matmul_peak, memory_bandwidth
from part_3.swiglu import SwiGLU
from part_5.moe import MoE, dispatch
from part_5.router import Router


@dataclass(frozen=True)
class Config:
    d_model: int = option(256, "model width")
    d_hidden: int = option(512, "hidden width of an expert; the dense layer has top_k times as much")
    n_expert: int = option(8, "experts")
    top_k: int = option(2, "experts that each token uses")
    n_tokens: int = option(4096, "most tokens of a pass")
    seconds: float = option(0.5, "how long to measure each number of tokens in each precision, 6 rounds at least")
    threads: int = option(1, "CPU threads")
    seed: int = option(1, "seed of weights and tokens")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(d_model=16, d_hidden=32, n_tokens=128, seconds=0.02)

    def __post_init__(self):
        check_positive(self, "d_model", "d_hidden", "n_expert", "top_k", "n_tokens", "seconds", "threads")
        if self.top_k > self.n_expert:
            raise InputError(f"--top_k {self.top_k} must not be above --n_expert {self.n_expert}")


class LoopOverMasks(nn.Module):
    """The same layer as older tutorials write it: for every choice k and every expert, the tokens that chose it."""

    def __init__(self, layer):
        super().__init__()
        self.router, experts = layer.router, layer.experts
        self.experts = nn.ModuleList(SwiGLU(down.shape[0], down.shape[1]) for down in experts.contract.weight)
        for expert, up, down in zip(self.experts, experts.expand.weight, experts.contract.weight):
            expert.load_state_dict({"expand.weight": up.detach(), "contract.weight": down.detach()})

    def forward(self, x):
        routing, y = self.router(x), torch.zeros_like(x)
        for experts, weights in zip(routing.experts.T, routing.weights.T):
            for e, expert in enumerate(self.experts):
                mask = experts == e
                y[mask] += weights[mask, None] * expert(x[mask])
        return y


def step_seconds(layers, n_tokens, dtype, device, config):
    """Times of forward and backward pass, round by round in every order. layers: name to module; returns name to list."""
    x, grad = torch.randn(2, n_tokens, config.d_model, device=device)
    times, turns, began = {name: [] for name in layers}, itertools.cycle(itertools.permutations(layers)), time.perf_counter()
    while time.perf_counter() - began < config.seconds or len(times["MoE"]) < 7:
        for name in next(turns):  # what ran before changes what memory costs
            layers[name].zero_grad()
            inputs = x.clone().requires_grad_()
            synchronize(device)
            started = time.perf_counter()
            with autocast(device, dtype):
                y = layers[name](inputs)
            y.backward(grad.to(y.dtype))
            synchronize(device)
            times[name].append(time.perf_counter() - started)
    return {name: seconds[1:] for name, seconds in times.items()}  # the first round warms up


def roofline_seconds(n_weights, n_active, n_tokens, peak, bandwidth):
    """The least time of a pass: three products (output, gradient of the input, gradient of the weights), each of 2 FLOPs for
    each token and active weight, and each with the 4 bytes of every weight to move. peak: GFLOP/s; bandwidth: GB/s."""
    return 3 * max(2 * n_active * n_tokens / peak, 4 * n_weights / bandwidth) / 1e9


def draw_dispatch(ax, n_tokens=6, n_expert=4):
    """Tokens in their order, their choices sorted by expert, and what comes together again, as the layer does it."""
    routing = Router(8, n_expert, 2)(torch.randn(n_tokens, 8))
    order, ends = dispatch(routing.experts, n_expert)
    filled = [0.0] * n_tokens
    for row, choice in enumerate(order.tolist()):
        token, expert = choice % n_tokens, int((ends <= row).sum())
        y, color, weight = 2 * token + 0.5, COLORS[expert], routing.weights.T.flatten()[choice].item()
        ax.plot([0.4, 1.75], [y, row], [2.25, 3.6], [row, y], color=color, linewidth=1.5, zorder=0)
        ax.barh(row, 0.5, 0.8, left=1.75, color=color)
        ax.text(2, row, token + 1, ha="center", va="center", fontsize=10)
        ax.barh(y, 0.8 * weight, 1.2, left=3.6 + filled[token], color=color)
        filled[token] += 0.8 * weight
    for token in range(n_tokens):
        ax.barh(2 * token + 0.5, 0.4, 1.2, color="0.85")
        for x in (0.2, 4):
            ax.text(x, 2 * token + 0.5, token + 1, ha="center", va="center")
    ax.invert_yaxis()
    ax.grid(False)
    ax.spines[:].set_visible(False)
    ax.set(yticks=[], title="dispatch and combine")
    ax.set_xticks([0.2, 2, 4], ["tokens", "sorted: each\nexpert runs once", "added up\nby weight"])


def main(config):
    torch.set_num_threads(config.threads)
    device, seconds = pick_device(config.device), min(config.seconds, 0.2)
    set_seed(config.seed)
    moe = MoE(config.d_model, config.d_hidden, config.n_expert, config.top_k).to(device)
    layers = {"dense": SwiGLU(config.d_model, config.top_k * config.d_hidden).to(device), "MoE": moe,
              "masks": LoopOverMasks(moe).to(device)}
    n_weights = {name: sum(weight.numel() for weight in layers[name].parameters()) for name in ("dense", "MoE")}
    n_active = n_weights | {"MoE": n_weights["MoE"] - moe.n_idle}
    bandwidth = memory_bandwidth(256, device, seconds)
    x = torch.randn(64, config.d_model, device=device)
    apart = (moe(x) - layers["masks"](x)).abs().amax()
    print(f"{describe(device)}, {bandwidth:.0f} GB/s\nweights: dense {n_weights['dense']:,}, MoE {n_weights['MoE']:,} "
          f"({n_active['MoE']:,} active); apart from the loop over masks by {apart:.0e} at most")
    sizes = [n for n in (32 * 4 ** i for i in range(20)) if 4 * n <= config.n_tokens] + [config.n_tokens]
    fig, (ax_dispatch, ax) = plt.subplots(1, 2, figsize=(12, 5), width_ratios=(2, 3))
    draw_dispatch(ax_dispatch)
    found, precisions = [], supported_precisions(device)
    bar = tqdm(total=len(sizes) * len(precisions), unit="size", disable=None)
    for precision, color, marker in zip(precisions, COLORS, "os^"):
        peak = matmul_peak(DTYPES[precision], device, seconds)
        tqdm.write(f"{precision}, the fastest product {peak:.0f} GFLOP/s")
        ratios = {"this layer": [], "loop over masks": [], "roofline": []}
        for n_tokens in sizes:
            times = step_seconds(layers, n_tokens, DTYPES[precision], device, config)
            dense = times.pop("dense")
            least, least_dense = (roofline_seconds(n_weights[name], n_active[name], n_tokens, peak, bandwidth)
                                  for name in ("MoE", "dense"))
            row = [median(a / b for a, b in zip(mine, dense)) for mine in times.values()] + [least / least_dense]
            for values, ratio in zip(ratios.values(), row):
                values.append(ratio)
            tqdm.write(f"{n_tokens:8,} tokens   dense {1e3 * median(dense):7.2f} ms (roofline {1e3 * least_dense:6.2f})   "
                       f"MoE {1e3 * median(times['MoE']):7.2f} ms ({1e3 * least:6.2f})   times dense: "
                       + ", ".join(f"{name} {ratio:.2f}" for name, ratio in zip(ratios, row)))
            bar.update()
        for (name, values), line, point in zip(ratios.items(), ("-", "--", ":"), (marker, marker, None)):
            ax.plot(sizes, values, color=color, linestyle=line, marker=point, label=f"{precision}, {name}")
        found.append("{}: {:.2f} times the dense layer's time with {:,} tokens, {:.2f} with {:,}".format(
            precision, ratios["this layer"][-1], sizes[-1], ratios["this layer"][0], sizes[0]))
    bar.close()
    ax.axhline(1, color=BLACK, linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="tokens", ylabel="time / time of the dense layer",
           title=f"forward and backward pass, {config.n_expert} experts, {config.top_k} a token")
    ax.set_xticks(sizes, [f"{n:,}" for n in sizes])
    ticks = [tick for tick in (1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32) if tick <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, ticks)
    ax.minorticks_off()
    ax.legend()
    print(save_figure(
        fig, figure_path(__file__, "moe", config.quick), title="A mixture of experts beside a dense layer of the same FLOPs",
        caption="Left: six tokens, each with two of four experts, a colour an expert; how wide a colour is at the right is "
                f"its weight. Right: {'; '.join(found)} ({describe(device)}). Roofline: FLOPs at the speed of the fastest "
                "matrix product or all weights at that of memory, whichever takes longer; a cache that holds the weights "
                "is faster.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
