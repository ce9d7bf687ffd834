"""What the tests of Part 4's trainer share: a tiny run on a tiny text, and how to read and stop it."""

import json
import math
import random

from part_3.generate import generate
from part_4 import train

# 12 steps in a tenth of a second, with checkpoints at 4, 8 and 12.
TINY = dict(steps=12, batch_size=4, block_size=16, n_layer=1, n_head=2, n_kv_head=2, d_model=16, vocab_size=280,
            warmup_steps=3, eval_every=4, save_every=4, log_every=1, eval_windows=4, eval_tokens=300, dropout=0.0,
            device="cpu", precision="fp32", optimizer="adamw", lr=3e-3, min_lr=1e-4)
CLOCK = {"seconds", "tokens_per_second", "mfu", "memory_gib", "save_seconds"}  # what differs between equal runs


def make_text(path, seed=0, n=4000):
    """Words of random letters; returns the path."""
    letters = random.Random(seed)
    path.write_text("".join(letters.choice("the cat sat ") for _ in range(n)), encoding="utf-8")
    return path


def start_quickly(monkeypatch):
    """No measurement of the machine and no other processes for the tokens at the start of a run; samples of 20 tokens."""
    monkeypatch.setattr("part_4.train.matmul_peak", lambda *arguments, **options: 1.0)
    monkeypatch.setattr("part_4.run_evaluation.generate",
                        lambda model, prompts, n_new, **options: generate(model, prompts, min(n_new, 20), **options))
    monkeypatch.setattr("os.cpu_count", lambda: 1)


def half_a_second_an_update(monkeypatch):
    """A clock by which each update takes half a second and all else no time, on a machine of 2e-3 GFLOP/s."""
    clock, gradients = [0.0], train.accumulate_gradients

    def slow(*arguments, **options):
        clock[0] += 0.5
        return gradients(*arguments, **options)

    monkeypatch.setattr(train.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(train, "accumulate_gradients", slow)
    monkeypatch.setattr(train, "matmul_peak", lambda *arguments, **options: 2e-3)


def config(text, out, **changes):
    """The flags of a tiny run; its tokens lie beside its text."""
    return train.Config(**{**TINY, "data": str(text), "out": str(out), "tokens": str(text.parent / "tokens"), **changes})


def flags(c):
    """The command line that gives this config."""
    words = []
    for name, value in vars(c).items():
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif value is not None:
            words += [f"--{name}", str(value)]
    return words


def records(out, name="metrics.jsonl"):
    """The lines of a JSON-lines file of a run directory."""
    return [json.loads(line) for line in (out / name).read_text(encoding="utf-8").splitlines()]


def without_clock(history):
    """The records without what the clock and the machine decide."""
    return [{key: value for key, value in record.items() if key not in CLOCK} for record in history]


class Interruption(Exception):
    pass


def before_update(monkeypatch, n_done, action):
    """Call `action` when so many updates have been done in this process, just before the next one."""
    original, calls = train.accumulate_gradients, []

    def accumulate_gradients(*arguments, **options):
        if len(calls) == n_done:
            action()
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(train, "accumulate_gradients", accumulate_gradients)


def interrupt(monkeypatch, n_done):
    """Let the run end in an Interruption after so many updates: nothing is saved, as after a crash."""
    def stop():
        raise Interruption

    before_update(monkeypatch, n_done, stop)


def cosine(step, c):
    """Warm-up and cosine, written out once more."""
    if step < c.warmup_steps:
        return c.lr / c.warmup_steps * (step + 1)
    angle = math.pi * (step - c.warmup_steps) / (c.steps - c.warmup_steps)
    return c.min_lr + (c.lr - c.min_lr) * (math.cos(angle) / 2 + 0.5)
