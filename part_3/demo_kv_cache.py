"""Lesson 3.4 - what does a cache save, and how far from the hardware's limit is decoding?

Times greedy decoding of a model of 6.4 million weights (random ones: speed does not depend on them), one prompt at a time
and sixteen at once: without a cache, with a static one, with a ring under a sliding window. What to see: without a cache
the time of a token grows with the text; with one it grows slowly, and under a window it is flat. The dotted line is the
memory's floor: all weights but the embedding, and all cached keys and values, cross the memory bus once a step. By default
on one thread, so that the figures compare; --threads changes that.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import functools
import time
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, autocast, pick_device, pick_precision, set_seed, synchronize
from part_0.onednn import packed_weights
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, figure_path, plt, save_figure
from part_0.roofline import best_seconds, memory_bandwidth
from part_3.generate import stream
from part_3.modern_gpt import ModernGPT, ModernGPTConfig

COLORS = {"none": ORANGE, "static": BLUE, "rolling": GREEN}
LABELS = {"none": "no cache", "static": "static cache", "rolling": "ring, window {} + {} sinks"}


@dataclass(frozen=True)
class Config:
    n_layer: int = option(6, "Transformer blocks")
    n_head: int = option(8, "query heads")
    n_kv_head: int = option(4, "key-value heads")
    d_model: int = option(256, "model width")
    vocab_size: int = option(4096, "vocabulary")
    batch_size: int = option(16, "prompts of the larger batch; the smaller one is a single prompt")
    n_prompt: int = option(16, "tokens of a prompt")
    n_new: int = option(320, "tokens to write")
    window: int = option(128, "window of the ring")
    sinks: int = option(4, "sinks in front of the ring")
    threads: int = option(1, "CPU threads")
    seed: int = option(0, "seed of weights and prompts")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("fp32", "of the matrix products", ("fp32", "bf16", "fp16"))
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_layer=2, d_model=32, vocab_size=256, batch_size=2, n_new=24, window=8)

    def __post_init__(self):
        check_positive(self, "batch_size", "n_prompt", "window", "threads")
        if self.n_new < 8:
            raise InputError(f"--n_new must be at least 8, not {self.n_new}")
        if self.sinks < 0:
            raise InputError(f"--sinks must not be negative, not {self.sinks}")
        self.model_config()

    def model_config(self, **changes):
        return ModernGPTConfig(self.vocab_size, self.n_prompt + self.n_new, self.n_layer, self.n_head, self.d_model,
                               self.n_kv_head, **changes)


def decode_times(model, prompts, config, cache):
    """Seconds of each new token but the first, which reads the prompt: a list."""
    moments = []
    for _ in stream(model, prompts, config.n_new, temperature=0.0, cache=cache):
        synchronize(prompts.device)
        moments.append(time.perf_counter())
    return [later - earlier for earlier, later in zip(moments, moments[1:])]


def times_without_cache(model, tokens, lengths):
    """Seconds of computing the next token's logits from nothing, at each of these lengths. tokens: (B, longest)."""
    def compute(length):
        return model.head(model.hidden_states(tokens[:, :length])[:, -1])

    with torch.inference_mode(), packed_weights(model):
        return [best_seconds(functools.partial(compute, length), tokens.device, 0.1) for length in lengths]


def main(config):
    torch.set_num_threads(config.threads)
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    set_seed(config.seed)
    models = {"static": ModernGPT(config.model_config()).to(device).eval()}
    models["rolling"] = ModernGPT(config.model_config(window=config.window, sinks=config.sinks)).to(device).eval()
    bandwidth = memory_bandwidth(256, device)
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.8))
    bar = tqdm(total=6, unit="run", disable=None)
    for ax, B in zip(axes, (1, config.batch_size)):
        prompts = torch.randint(config.vocab_size, (B, config.n_prompt), device=device)
        with autocast(device, dtype):
            lengths = [config.n_prompt + config.n_new * i // 4 for i in range(5)]
            seconds = times_without_cache(models["static"], prompts[:, :1].expand(-1, lengths[-1]), lengths)
            ax.semilogy(lengths, [1000 * s for s in seconds], color=COLORS["none"], marker="o", label=LABELS["none"])
            mean_seconds = sum((a + b) / 2 for a, b in zip(seconds, seconds[1:])) / 4  # of a token, the trapezoid rule
            tqdm.write(f"batch {B:2d}   no cache {B / mean_seconds:7.0f} tokens/s")
            bar.update()
            for cache, model in models.items():
                # Of two runs the faster of each step: whatever else the machine does can only make one slower.
                times = [min(step) for step in zip(*(decode_times(model, prompts, config, cache) for _ in range(2)))]
                width = max(1, len(times) // 16)  # tokens for one point
                points = [1000 * median(times[i:i + width]) for i in range(0, len(times) - width + 1, width)]
                ax.semilogy([config.n_prompt + (i + 0.5) * width for i in range(len(points))], points, color=COLORS[cache],
                            label=LABELS[cache].format(config.window, config.sinks))
                held = model.new_cache(cache, B, config.n_prompt + config.n_new).n_bytes
                tqdm.write(f"batch {B:2d}   {cache:8s} {B * len(times) / sum(times):7.0f} tokens/s   "
                           f"{1000 * median(times):.2f} ms a step   cache {held / 1e6:.1f} MB")
                bar.update()
        weights = 4 * (models["static"].n_params() - models["static"].token_embedding.weight.numel())
        entry = 2 * 4 * config.n_layer * config.n_kv_head * config.d_model // config.n_head * B  # bytes of a position
        ends = (config.n_prompt, config.n_prompt + config.n_new)
        ax.semilogy(ends, [1000 * (weights + n * entry) / (bandwidth * 1e9) for n in ends], color=BLACK, linestyle=":",
                    label=f"memory floor, at {bandwidth:.0f} GB/s")
        ax.margins(y=0.25)  # room for the legend
        ax.set(xlabel="tokens before this one", ylabel="milliseconds a step",
               title=f"batch of {B}: {B} token{'s' * (B > 1)} a step")
    bar.close()
    axes[0].legend(loc="upper left", fontsize=9)
    path = save_figure(
        fig, figure_path(__file__, "kv_cache", config.quick), title="What a token costs, with and without a cache",
        caption=f"{config.n_layer} layers, width {config.d_model}, {config.n_head} query heads, {config.n_kv_head} "
                f"key-value heads, {config.precision}, {config.threads} thread{'s' * (config.threads > 1)}. Orange: "
                "everything is computed again for every token. Blue: one token, all keys read. Green: one token, a bounded "
                "number of keys. Dotted: the least time that reading weights and keys from memory takes.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
