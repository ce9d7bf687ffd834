"""Lesson 8.4 - where do the seconds of an RL step go, and how far from the processor's limit are they?

Times whole PPO steps on one thread: 64 answers of exactly 32 tokens to prompts of 16, scored, and learnt from four times.
Policy, critic, reference and reward model have 0.86 million weights each (random ones: speed does not depend on them). The
precisions take turns, round by round; shown is the step of median duration. Paler bars are the floor: FLOPs (2 a weight and
token forward, 4 backward) at the speed of the fastest matrix product found here; generation: or bytes of weights and cache
at that of the memory, whichever takes longer. What to see: writing is the smaller part of a step, learning the larger.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import contextlib
import copy
import time
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DTYPES, describe, set_seed, supported_precisions
from part_0.onednn import packed_weights
from part_0.plotting import BLUE, GREEN, ORANGE, PURPLE, figure_path, plt, save_figure
from part_0.roofline import best_seconds, matmul_flops, matmul_peak, memory_bandwidth
from part_3.modern_gpt import ModernGPT, ModernGPTConfig
from part_7.reward_model import RewardModel
from part_8.experience import make_experience
from part_8.policy import ActorCritic
from part_8.ppo_config import Config as PPOConfig
from part_8.rewards import score_rollout
from part_8.rollout import collect
from part_8.train_ppo import build_optimizers, learn

PARTS = {"generation": ORANGE, "reward model": PURPLE, "experience": GREEN, "learning": BLUE}
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Config:
    vocab_size: int = option(256, "vocabulary")
    n_layer: int = option(4, "Transformer blocks")
    n_head: int = option(4, "heads")
    d_model: int = option(128, "model width")
    batch_size: int = option(64, "answers a step")
    minibatch_size: int = option(64, "answers an update")
    epochs: int = option(4, "times each answer is learnt from")
    n_prompt: int = option(16, "tokens of a prompt")
    spread: int = option(0, "prompts are up to so many tokens shorter or longer")
    n_new: int = option(32, "tokens of an answer")
    n_rounds: int = option(3, "rounds in which every precision has its turn, after one of an epoch that warms up")
    seed: int = option(0, "seed of weights and prompts")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_layer=1, d_model=32, batch_size=8, minibatch_size=8, n_new=4, n_rounds=1)

    def __post_init__(self):
        check_positive(self, "n_prompt", "n_new", "n_rounds")
        if not 0 <= self.spread < self.n_prompt:
            raise InputError(f"--spread must be in [0, {self.n_prompt}), not {self.spread}")
        self.sizes(), self.ppo("fp32")

    def sizes(self):
        return ModernGPTConfig(self.vocab_size, self.n_prompt + self.spread + self.n_new, self.n_layer, self.n_head,
                               self.d_model)

    def ppo(self, precision):
        return PPOConfig(batch_size=self.batch_size, minibatch_size=self.minibatch_size, epochs=self.epochs, kl_stop=0.0,
                         precision=precision)  # all epochs, however far the policy goes


@contextlib.contextmanager
def one_thread():
    """Context in which torch computes on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step_seconds(model, reference, reward_model, optimizers, prompts, config, precision):
    """A PPO step as in part_8/train_ppo.py. Returns the seconds of each of PARTS: (4,)."""
    dtype, ppo, clock = DTYPES[precision], config.ppo(precision), [time.perf_counter()]
    generator = torch.Generator().manual_seed(config.seed)
    rollout = collect(model.policy, prompts, config.n_new, (config.vocab_size,), generator=generator)  # nothing ends it
    clock.append(time.perf_counter())
    scores = score_rollout(reward_model, rollout, dtype=dtype)
    clock.append(time.perf_counter())
    experience = make_experience(model, reference, rollout, scores, ppo.beta, dtype=dtype)
    clock.append(time.perf_counter())
    updates = learn(model, optimizers, experience, ppo, np.random.default_rng(config.seed))
    clock.append(time.perf_counter())
    assert len(updates) == config.epochs * -(-config.batch_size // config.minibatch_size)
    return np.diff(clock)


def product_peak(dtype, seconds):
    """GFLOP/s of the fastest matrix product: torch.mm's, or in fp32 that of a layer with packed weights (lesson 3.4)."""
    linear, x = nn.Linear(512, 512, bias=False).to(dtype), torch.rand(512, 512, dtype=dtype)
    with torch.no_grad(), packed_weights(linear):
        packed = matmul_flops(512, 512) / best_seconds(lambda: linear(x), CPU, seconds) / 1e9
    return max(packed, matmul_peak(dtype, CPU, seconds))


def floor_seconds(model, reference, reward_model, prompts, config, peaks, bandwidth):
    """The least seconds of each of PARTS, (4,), and of generation by FLOPs and by bytes. peaks: GFLOP/s of generation, which
    is always fp32, and of the rest; bandwidth: GB/s. Attention's own products, some percent, are left out."""
    policy, critic, home, judge = (sum(part.weight.numel() for part in one.modules() if type(part) is nn.Linear) for one in
                                   (model.policy, model.critic, reference, reward_model))
    B, n, n_read = config.batch_size, config.n_new, sum(map(len, prompts))
    by_flops = 2 * policy * (n_read + B * (n - 1)) / peaks[0] / 1e9
    entry = 2 * 4 * config.n_layer * config.d_model  # bytes that the cache holds of a token
    cached = sum(n_read + B * i for i in range(n))  # tokens read from it, all steps together
    by_bytes = (4 * n * policy + entry * cached) / bandwidth / 1e9
    flops = [2 * judge, 2 * (policy + critic + home), 6 * config.epochs * (policy + critic)]
    rest = [one * (n_read + B * n) / peaks[1] / 1e9 for one in flops]
    return np.array([max(by_flops, by_bytes), *rest]), by_flops, by_bytes


def main(config):
    with one_thread():
        print(f"{describe(CPU)}")
        measure(config)


def measure(config):
    set_seed(config.seed)
    policy, critic, judge = (ModernGPT(config.sizes()).eval() for _ in range(3))
    n_params = policy.n_params()
    reference, reward_model = (one.requires_grad_(False).eval() for one in (copy.deepcopy(policy), RewardModel(judge)))
    lengths = config.n_prompt + torch.randint(-config.spread, config.spread + 1, (config.batch_size,))
    prompts = [torch.randint(config.vocab_size, (n,)).tolist() for n in lengths]
    precisions, steps = supported_precisions(CPU), {}
    models = {precision: ActorCritic(copy.deepcopy(policy), copy.deepcopy(critic)) for precision in precisions}
    optimizers = {precision: build_optimizers(model, config.ppo(precision)) for precision, model in models.items()}
    for round in tqdm(range(config.n_rounds + 1), unit="round", disable=None):
        for precision in precisions:
            seconds = step_seconds(models[precision], reference, reward_model, optimizers[precision], prompts,
                                   config if round else replace(config, epochs=1), precision)
            steps.setdefault(precision, []).extend([seconds] if round else [])
    bandwidth = memory_bandwidth(256, CPU, 0.02 if config.quick else 0.2)
    peaks = {precision: product_peak(DTYPES[precision], 0.02 if config.quick else 0.2) for precision in precisions}

    print(f"{n_params:,} weights each; {config.batch_size} answers of {config.n_new} tokens to prompts of "
          f"{min(lengths)} to {max(lengths)}; {config.epochs} epochs in minibatches of {config.minibatch_size}")
    fig, ax = plt.subplots(figsize=(9, 4.4))
    found = []
    for row, precision in enumerate(precisions):
        median = sorted(steps[precision], key=sum)[(config.n_rounds - 1) // 2]
        floor, by_flops, by_bytes = floor_seconds(models[precision], reference, reward_model, prompts, config,
                                                  (peaks["fp32"], peaks[precision]), bandwidth)
        totals = [sum(one) for one in steps[precision]]
        print(f"\n{precision}: a step takes {sum(median):.2f} s ({min(totals):.2f} to {max(totals):.2f}), "
              f"{sum(median) / sum(floor):.1f} times the floor of {sum(floor):.2f} s; the fastest product "
              f"{peaks[precision]:.0f} GFLOP/s\n{'':14s}{'seconds':>9s}{'share':>8s}{'floor':>9s}{'times':>8s}")
        for name, own, least in zip(PARTS, median, floor):
            print(f"{name:14s}{own:9.3f}{own / sum(median):8.0%}{least:9.3f}{own / least:8.1f}")
        print(f"floor of generation: {by_flops:.3f} s by FLOPs, {by_bytes:.3f} s by bytes at {bandwidth:.0f} GB/s")
        for y, parts, alpha in ((3 * row, median, 1.0), (3 * row + 1, floor, 0.45)):
            for (name, color), left, width in zip(PARTS.items(), np.cumsum(parts) - parts, parts):
                ax.barh(y, width, 0.85, left, color=color, alpha=alpha, label=name if y == 0 else None)
            ax.text(sum(parts), y, f" {sum(parts):.2f} s", va="center")
        found.append(f"{precision} {sum(median):.2f} s, {median[0] / sum(median):.0%} of it generation and "
                     f"{median[3] / sum(median):.0%} learning, floor {sum(floor):.2f} s")
    ax.set_yticks([3 * row + i for row in range(len(precisions)) for i in (0, 1)],
                  [label for precision in precisions for label in (precision, "its floor")])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set(xlabel="seconds of a step, one thread", xlim=(0, 1.15 * ax.get_xlim()[1]))
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=4, columnspacing=1.2, handlelength=1.2)
    print(save_figure(
        fig, figure_path(__file__, "rollout_speed", config.quick), title="Where the seconds of a PPO step go",
        caption=f"{n_params:,} weights each in policy, critic, reference and reward model; {config.batch_size} answers of "
                f"{config.n_new} tokens, {config.epochs} epochs in minibatches of {config.minibatch_size}; one thread, the "
                f"median of {config.n_rounds} steps: {'; '.join(found)}. Generation is fp32 in all rows. Experience: a pass "
                "each of policy, critic and reference. Paler bars: FLOPs at the speed of this machine's fastest matrix "
                "product; generation: or bytes at that of its memory, whichever takes longer.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
