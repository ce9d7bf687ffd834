"""Lesson 3.1 - comparing two designs fairly: the same batches, the same budget, several seeds, steps taken in turn.

A difference between two runs means little while a third with another seed may lie between them. So every variant is trained
from each of several seeds; with one seed all variants see the same batches in the same order; and they take their steps in
turn, so that a noisy machine slows all of them alike and the ratio of their times can be trusted.
"""

import random
import time
from dataclasses import dataclass, field
from statistics import mean, median

import torch
from tqdm import tqdm

from part_0.cli import InputError, check_positive, option
from part_0.device import DEVICES, PRECISIONS, autocast, pick_device, pick_precision, set_seed, synchronize
from part_2.byte_tokenizer import ByteTokenizer
from part_2.corpus import DATA_HELP, load_corpus
from part_2.dataset import get_batch, split_tokens
from part_2.evaluate import windows_loss
from part_2.loss import cross_entropy
from part_2.optimization import parameter_groups, warmup_cosine
from part_3.modern_gpt import ModernGPT, ModernGPTConfig


@dataclass(frozen=True)
class ComparisonConfig:
    """The flags that the comparisons of this part share."""

    data: str = option("python-docs", DATA_HELP)
    steps: int = option(300, "optimizer steps of each run")
    batch_size: int = option(8, "windows a step")
    block_size: int = option(64, "context length in tokens")
    n_layer: int = option(2, "Transformer blocks")
    n_head: int = option(4, "attention heads")
    d_model: int = option(64, "model width")
    lr: float = option(2.5e-3, "highest learning rate")
    n_seed: int = option(3, "seeds, i.e. runs of each variant")
    seed: int = option(1, "the first seed")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("auto", "of the matrix products", PRECISIONS)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "block_size", "n_layer", "n_head", "d_model", "lr", "n_seed")
        if self.d_model % self.n_head:
            raise InputError(f"--d_model {self.d_model} must be divisible by --n_head {self.n_head}")

    def model_config(self, **changes):
        """The shape of a ModernGPT of these sizes with `changes`."""
        return ModernGPTConfig(**dict(vocab_size=256, block_size=self.block_size, n_layer=self.n_layer, n_head=self.n_head,
                                      d_model=self.d_model) | changes)

    def build_model(self, **changes):
        """The model of these sizes with `changes`, with fresh weights."""
        return ModernGPT(self.model_config(**changes))

    def load_tokens(self):
        """Training and validation part of the corpus, as bytes: two (N,) tensors."""
        text = load_corpus(self.data)
        return split_tokens(ByteTokenizer(special_tokens=()).encode_to_tensor(text), self.block_size)


@dataclass
class Runs:
    """What the runs of one variant gave; the outer lists have one entry a seed."""

    models: list = field(default_factory=list)
    steps: list = field(default_factory=list)  # at which the validation loss was measured
    val_loss: list = field(default_factory=list)  # n_seed lists of nats per token
    seconds: list = field(default_factory=list)  # n_seed lists of a step's time
    observed: list = field(default_factory=list)  # n_seed lists of what `observe` returned


def describe(name, runs):
    """A line with a variant's number of weights and its final validation loss: the mean, and each seed's."""
    final = [losses[-1] for losses in runs.val_loss]
    return (f"{name:20s} {runs.models[0].n_params():,} weights   final loss {mean(final):.3f} nats per byte "
            f"({', '.join(f'{loss:.3f}' for loss in final)})")


def step_time_ratios(runs, others):
    """How many times as long a step of `runs` takes as one of `others`: for each seed the median over neighbouring steps.

    Neighbours were taken in turn, so the ratio holds even where the machine's speed changes.
    """
    return [median(mine / other for mine, other in zip(*pair)) for pair in zip(runs.seconds, others.seconds)]


def compare(config, variants, observe=None, n_evals=10, auxiliary_loss=None, after_update=None):
    """Train every variant from every seed.

    config: a ComparisonConfig; variants: name to the arguments of `config.build_model`; observe: called with the model after
    each backward pass of the second half, before clipping; auxiliary_loss, after_update: called with the model after each
    forward pass, for a scalar to add to the loss, and after each step (part_5/hybrid.py). The learning rate warms up over a
    tenth of the steps. Returns name to Runs; the models are in eval mode.
    """
    device = pick_device(config.device)
    dtype = pick_precision(config.precision, device)
    train_tokens, val_tokens = config.load_tokens()
    val_batch = [part.to(device) for part in get_batch(val_tokens, 64, config.block_size, torch.Generator().manual_seed(0))]
    results = {name: Runs() for name in variants}
    bar = tqdm(total=config.n_seed * config.steps * len(variants), unit="step", disable=None)
    for seed in range(config.seed, config.seed + config.n_seed):
        batches, turns = torch.Generator().manual_seed(seed), random.Random(seed)
        optimizers = {}
        for name, changes in variants.items():
            set_seed(seed)
            model = config.build_model(**changes).to(device)
            optimizers[name] = torch.optim.AdamW(parameter_groups(model, 0.1), betas=(0.9, 0.99), fused=True)
            results[name].models.append(model)
            for series in (results[name].val_loss, results[name].seconds, results[name].observed):
                series.append([])
        for step in range(config.steps + 1):
            if step * n_evals // config.steps != (step - 1) * n_evals // config.steps:
                for runs in results.values():
                    runs.val_loss[-1].append(windows_loss(runs.models[-1], *val_batch, dtype))
                    if seed == config.seed:
                        runs.steps.append(step)
            if step == config.steps:
                break
            lr = warmup_cosine(step, config.steps, config.lr, config.lr / 10, max(1, config.steps // 10))
            batch = get_batch(train_tokens, config.batch_size, config.block_size, batches)
            inputs, targets = (part.to(device) for part in batch)
            for name in turns.sample(list(variants), len(variants)):
                runs, optimizer = results[name], optimizers[name]
                synchronize(device)
                started = time.perf_counter()
                with autocast(device, dtype):
                    logits = runs.models[-1](inputs)
                loss = cross_entropy(logits, targets)
                if auxiliary_loss is not None:
                    loss = loss + auxiliary_loss(runs.models[-1])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if observe is not None and step >= config.steps // 2:
                    runs.observed[-1].append(observe(runs.models[-1]))
                torch.nn.utils.clip_grad_norm_(runs.models[-1].parameters(), 1.0)
                for group in optimizer.param_groups:
                    group["lr"] = lr
                optimizer.step()
                if after_update is not None:
                    after_update(runs.models[-1])
                synchronize(device)
                runs.seconds[-1].append(time.perf_counter() - started)
                bar.update()
            bar.set_postfix(seed=seed, loss=f"{loss.item():.2f}", refresh=False)
    bar.close()
    for runs in results.values():
        for model in runs.models:
            model.eval()
    return results
