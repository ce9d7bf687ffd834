"""Lesson 2.4 - train a tiny GPT on real text, byte by byte. The whole loop is on this page.

    python3 part_2/train.py                      Python's own reference text, on any laptop
    python3 part_2/train.py --data my.txt        your own text
    python3 part_2/train.py --resume             go on where the last checkpoint stands

The run directory (--out) then holds config.json, metrics.jsonl (a line a logged step), samples.jsonl (what the model wrote
at each evaluation), tensorboard/, best.pt and last.pt, and summary.json. Left out here and added in Part 4: accumulation,
several processes, memory-mapped data, and what a run needs to survive anything.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import dataclasses
import hashlib
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, option, run_script
from part_0.device import (DEVICES, PRECISIONS, autocast, grad_scaler, pick_device, pick_precision, rng_state,
                           set_rng_state, set_seed, synchronize)
from part_2.byte_tokenizer import ByteTokenizer
from part_2.checkpoint import save_checkpoint, write_json
from part_2.corpus import DATA_HELP, load_corpus
from part_2.dataset import get_batch, split_tokens
from part_2.evaluate import figures_of_merit, split_losses, windows_loss
from part_2.gpt import GPT, GPTConfig
from part_2.loss import cross_entropy
from part_2.optimization import parameter_groups, warmup_cosine
from part_2.run_directory import append_record, resume_run, start_run
from part_2.sampling import generate

RUNS = Path(__file__).resolve().parent / "runs"


@dataclass(frozen=True)
class Config:
    data: str = option("python-docs", DATA_HELP)
    out: str = option(str(RUNS / "train"), "the run directory")
    steps: int = option(1600, "optimizer steps")
    batch_size: int = option(16, "windows a step")
    block_size: int = option(128, "context length in tokens")
    n_layer: int = option(4, "Transformer blocks")
    n_head: int = option(4, "attention heads")
    d_model: int = option(128, "model width")
    dropout: float = option(0.0, "dropout probability")
    tie_embeddings: bool = option(False, "one matrix for token embedding and output")
    lr: float = option(3e-3, "highest learning rate")
    min_lr: float = option(1e-4, "learning rate at the end")
    warmup_steps: int = option(100, "steps of linear warm-up")
    beta2: float = option(0.99, "AdamW's second-moment decay")
    weight_decay: float = option(0.1, "AdamW's weight decay, on matrices only")
    grad_clip: float = option(1.0, "the gradient's norm is clipped to this")
    eval_every: int = option(100, "steps between evaluations (loss, sample, checkpoint)")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    seed: int = option(1337, "seed of weights, batches and samples")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("auto", "of the matrix products", PRECISIONS)
    resume: bool = option(False, "go on from the newest checkpoint in --out")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(out=str(RUNS / "quick"), steps=20, batch_size=4, block_size=32, n_layer=2, d_model=32,
                                 warmup_steps=5, eval_every=10, log_every=5)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "lr", "grad_clip", "eval_every", "log_every")
        if not self.out:
            raise InputError("--out must not be empty")
        if self.warmup_steps < 0 or self.min_lr < 0 or self.weight_decay < 0:
            raise InputError("--warmup_steps, --min_lr and --weight_decay must not be negative")
        if self.min_lr > self.lr:
            raise InputError(f"--min_lr {self.min_lr} must not be above --lr {self.lr}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"--beta2 must be in [0, 1), not {self.beta2}")
        self.model_config(vocab_size=256)  # refuses a shape that cannot be built

    def model_config(self, vocab_size):
        return GPTConfig(vocab_size, self.block_size, self.n_layer, self.n_head, self.d_model, self.dropout,
                         tie_embeddings=self.tie_embeddings)


def write_sample(model, tokenizer, seed):
    """200 bytes with which the model continues "The ", at temperature 0.8."""
    device = next(model.parameters()).device
    prompt = torch.tensor([tokenizer.encode("The ")], device=device)
    tokens = generate(model, prompt, 200, temperature=0.8, generator=torch.Generator(device).manual_seed(seed))
    return tokenizer.decode(tokens[0].tolist())


def check_finite(loss, step, config):
    """InputError when the run has diverged."""
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} at step {step}: try a smaller --lr than {config.lr}")


def main(config, model_class=GPT):
    """Train. Returns the history: the dicts of metrics.jsonl in order, the summary last.

    model_class: what is built from `config.model_config`, and is called like a GPT; Part 3 gives its own.
    """
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    text = load_corpus(config.data)
    data_hash = hashlib.sha256(text.encode("utf-8")).hexdigest()
    tokenizer = ByteTokenizer(special_tokens=())  # one long text: there is no end of a document to mark
    train_tokens, val_tokens = split_tokens(tokenizer.encode_to_tensor(text), config.block_size)
    # The same validation windows at every evaluation of every run with this text and block size.
    val_inputs, val_targets = (part.to(device) for part in get_batch(
        val_tokens, 64, config.block_size, torch.Generator().manual_seed(0)))

    set_seed(config.seed)
    model = model_class(config.model_config(tokenizer.vocab_size)).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(model, config.weight_decay), lr=config.lr, betas=(0.9, config.beta2),
                                  fused=True)
    scaler = grad_scaler(device, dtype)
    batches = torch.Generator().manual_seed(config.seed)
    step, seconds, best = 0, 0.0, math.inf
    if config.resume:
        state, damage = resume_run(config, data_hash)
        if damage:
            print(f"{damage}; going on from best.pt, step {state['step']}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:  # empty unless the run was in fp16
            scaler.load_state_dict(state["scaler"])
        batches.set_state(state["batches"])
        set_rng_state(state["rng"])
        step, seconds, best = state["step"], state["seconds"], state["best"]
    elif previous := start_run(config):
        print(f"the run that was in {config.out} is now in {previous}")
    out = Path(config.out)
    from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes a second
    tensorboard = SummaryWriter(str(out / "tensorboard"), purge_step=step)
    tensorboard.add_text("config", json.dumps(dataclasses.asdict(config), indent=2), step)
    tokens_per_step = config.batch_size * config.block_size
    history = []

    def log(**record):
        history.append({"step": step, **record})
        append_record(out, "metrics.jsonl", history[-1])
        for name, value in record.items():
            tensorboard.add_scalar(name, value, step)

    bar = tqdm(total=config.steps, initial=step, unit="step", disable=None)  # no bar where output is no terminal
    started = time.perf_counter()
    while True:
        if step % config.eval_every == 0 or step == config.steps:
            synchronize(device)
            seconds += time.perf_counter() - started  # evaluation does not count as training time
            val_loss = windows_loss(model, val_inputs, val_targets, dtype)
            check_finite(val_loss, step, config)
            sample = write_sample(model, tokenizer, config.seed)
            log(tokens=step * tokens_per_step, seconds=seconds, val_loss=val_loss)
            append_record(out, "samples.jsonl", {"step": step, "val_loss": val_loss, "text": sample})
            tensorboard.add_text("sample", sample, step)
            tqdm.write(f"step {step:5d}/{config.steps}   val loss {val_loss:.3f} nats/token   {seconds:5.1f} s")
            if step > 0:
                is_best, best = val_loss < best, min(best, val_loss)
                checkpoint = {
                    "step": step, "seconds": seconds, "best": best, "val_loss": val_loss,
                    "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
                    "batches": batches.get_state(), "rng": rng_state(), "config": dataclasses.asdict(config),
                    "model_config": dataclasses.asdict(model.config), "data_hash": data_hash,
                    "special_tokens": list(tokenizer.special_tokens)}
                save_checkpoint(out / "last.pt", checkpoint)
                if is_best:
                    save_checkpoint(out / "best.pt", checkpoint)
            started = time.perf_counter()
        if step == config.steps:
            break

        lr = warmup_cosine(step, config.steps, config.lr, config.min_lr, config.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        inputs, targets = get_batch(train_tokens, config.batch_size, config.block_size, batches)
        with autocast(device, dtype):
            logits = model(inputs.to(device))
        loss = cross_entropy(logits, targets.to(device))
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        scaler.step(optimizer)
        scaler.update()

        if step % config.log_every == 0:
            check_finite(loss.item(), step, config)
            log(tokens=(step + 1) * tokens_per_step, seconds=seconds + time.perf_counter() - started, loss=loss.item(),
                lr=lr, grad_norm=grad_norm.item())
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
        step += 1
        bar.update()
    bar.close()
    tensorboard.close()

    merit = figures_of_merit(split_losses(model, val_tokens, dtype=dtype), len(val_tokens) - 1)
    summary = {**merit, "best_val_loss": best, "steps": config.steps, "tokens": config.steps * tokens_per_step,
               "params": model.n_params(), "seconds": seconds, "device": device.type,
               "tokens_per_second": config.steps * tokens_per_step / seconds}
    write_json(out / "summary.json", summary)
    print(f"the run is in {out}; look at it with: python3 part_2/demo_training.py"
          + ("" if out == RUNS / "train" else f" --run {out}"))
    print(json.dumps(summary, indent=2))
    return [*history, summary]


if __name__ == "__main__":
    run_script(main, Config, __doc__)
