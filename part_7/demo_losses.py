"""Lesson 7.3 - what do two losses on pairs ask for, and does it matter which one a reward model learns from?

Draws Bradley-Terry's loss (plain, smoothed, with a margin) and the margin ranking loss over the difference of two rewards,
and their gradients by autograd. Then trains a reward model with either from three seeds: the same pairs, batches and first
weights, a share of the trainer's steps. What to see: right, whether the curves stay apart by more than their bands, and how
far both are from the dashed line, the annotator's own consistency, which no model can pass but by luck.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, autocast, grad_scaler, pick_device, pick_precision, set_seed
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, PURPLE, band, figure_path, plt, save_figure
from part_2.optimization import warmup_cosine
from part_4.bpe_training import in_processes
from part_4.grad_accumulation import clipped_update
from part_4.optimizer import build_optimizers, set_learning_rate
from part_6.chat_model import TRAINER, load_model
from part_6.curriculum import draw_batch
from part_6.prompt_template import END
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.gold_utility import consistency
from part_7.losses import LOSSES, bradley_terry_loss, margin_ranking_loss
from part_7.preference_data import make_pairs
from part_7.reward_model import RewardModel
from part_7.scoring import encode_response, reward_batch, score

STYLES = {"bradley_terry": (BLACK, "-"), "margin_ranking": (ORANGE, "-.")}
CURVES = {"Bradley-Terry": (bradley_terry_loss, {}, *STYLES["bradley_terry"]),
          "label smoothing 0.1": (bradley_terry_loss, {"label_smoothing": 0.1}, BLUE, "--"),
          "margin 1": (bradley_terry_loss, {"margin": 1.0}, GREEN, ":"),
          "margin ranking, margin 1": (margin_ranking_loss, {"margin": 1.0}, *STYLES["margin_ranking"])}


@dataclass(frozen=True)
class Config:
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), f"the fine-tuned model, a checkpoint of {TRAINER}")
    n_stories: int = option(400, "story prompts to train on; 6 samples each")
    n_exact: int = option(189, "tasks of the other families to train on; 2 samples each")
    n_val: int = option(105, "validation story prompts, and as many other tasks")
    temperature: float = option(0.4, "the annotator's")
    steps: int = option(60, "optimizer steps of each run")
    batch_size: int = option(40, "pairs a step")
    lr: float = option(0.005, "highest learning rate, of Muon")
    n_eval: int = option(5, "evaluations along a run")
    n_seed: int = option(3, "seeds of new weights and batches, i.e. runs with each loss")
    seed: int = option(1, "the first seed, also of the pairs")
    n_process: int = option(2, "runs side by side, each in a process with one thread")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), n_stories=12, n_exact=7, n_val=7, steps=4,
                                 batch_size=8, n_eval=2, n_seed=2)

    def __post_init__(self):
        check_positive(self, "n_stories", "n_exact", "n_val", "temperature", "steps", "batch_size", "lr", "n_eval", "n_seed",
                       "n_process")
        if self.n_eval > self.steps:
            raise InputError(f"--n_eval {self.n_eval} must be at most --steps {self.steps}")


def train_one(config, train, val, job):
    """A run; train, val: pairs as rows, ((ids, is_answer) chosen, rejected); job: (loss's name, seed). Returns the share of
    validation pairs whose chosen answer has the higher reward, at each evaluation: (n_eval,)."""
    torch.set_num_threads(1)
    name, seed = job
    set_seed(seed)  # of the new weights: the same for both losses
    device = pick_device(config.device)
    dtype = pick_precision("auto", device)
    model = RewardModel(load_model(config.sft, device)[0]).to(device).train()
    optimizers = build_optimizers(model, "muon", config.lr, beta2=0.95, weight_decay=0.1)
    lengths, accuracies = [max(len(ids) for ids, _ in pair) for pair in train], []
    for step in range(config.steps):
        set_learning_rate(optimizers, warmup_cosine(step, config.steps, config.lr, config.lr / 20, config.steps // 10))
        drawn = draw_batch("uniform", lengths, lengths, seed, step, config.steps, config.batch_size)
        loss = torch.zeros((), device=device)
        drawn = sorted(drawn, key=lambda i: lengths[i])  # parts of like lengths need less padding
        for part in np.array_split(drawn, min(4, len(drawn))):
            with autocast(device, dtype):
                rewards = model(*reward_batch([train[i][side] for side in (0, 1) for i in part], device))
            part_loss = LOSSES[name](*rewards.chunk(2)) * len(part) / len(drawn)
            part_loss.backward()
            loss += part_loss.detach()
        clipped_update(model, optimizers, grad_scaler(device, torch.float32), 1.0, loss)
        if (step + 1) * config.n_eval // config.steps > step * config.n_eval // config.steps:
            chosen, rejected = (score(model, list(rows), dtype) for rows in zip(*val))
            accuracies.append((chosen > rejected).double().mean().item())
    return accuracies


def draw_curves(ax_loss, ax_gradient):
    """The losses over the difference of the rewards, and their gradients by autograd."""
    difference = torch.linspace(-4, 4, 801, requires_grad=True)
    for label, (loss, options, color, line) in CURVES.items():
        losses = torch.stack([loss(d[None], torch.zeros(1), **options) for d in difference])
        [gradient] = torch.autograd.grad(losses.sum(), difference)
        for ax, values in ((ax_loss, losses.detach()), (ax_gradient, gradient)):
            ax.plot(difference.detach(), values, color=color, linestyle=line, label=label)
    ax_loss.set(xlabel="reward of chosen - of rejected", ylabel="loss (nats; ranking: reward)", title="the losses")
    ax_gradient.set(xlabel="reward of chosen - of rejected", ylabel="gradient", title="their gradients")
    ax_loss.legend(loc="upper right")


def main(config):
    policy, tokenizer, _ = load_model(config.sft, pick_device(config.device))
    if END not in tokenizer.special_ids:
        raise InputError(f"{config.sft} is a base model; make a fine-tuned one with: python3 {TRAINER}")
    train, val = (make_pairs(policy, tokenizer, split, *sizes, config.temperature, config.seed) for split, sizes in
                  (("train", (config.n_stories, config.n_exact)), ("val", (config.n_val, config.n_val))))
    if config.batch_size > len(train.pairs):
        raise InputError(f"--batch_size {config.batch_size} is more than the {len(train.pairs)} pairs there are")
    rows = [[[encode_response(pair.prompt, one, tokenizer) for one in (pair.chosen, pair.rejected)] for pair in own.pairs]
            for own in (train, val)]
    seeds = range(config.seed, config.seed + config.n_seed)
    jobs = [(name, seed) for name in LOSSES for seed in seeds]
    runs = list(tqdm(in_processes(partial(train_one, config, *rows), jobs, config.n_process), total=len(jobs), unit="run",
                     disable=None))
    best = consistency(val.gaps, config.temperature)
    evaluated = [-(-config.steps * i // config.n_eval) for i in range(1, config.n_eval + 1)]

    fig, (ax_loss, ax_gradient, ax_accuracy) = plt.subplots(1, 3, figsize=(13, 4.8))
    draw_curves(ax_loss, ax_gradient)
    print(f"accuracy on {len(val.pairs)} validation pairs after {config.steps} steps of {config.batch_size} of the "
          f"{len(train.pairs)} pairs\n{'loss':>16s}" + "".join(f"{f'seed {seed}':>10s}" for seed in seeds)
          + "      mean   lowest to highest")
    ends = {}
    for name, own in zip(LOSSES, np.reshape(runs, (len(LOSSES), config.n_seed, -1))):  # (n_seed, n_eval)
        color, line = STYLES[name]
        band(ax_accuracy, evaluated, own, color=color, linestyle=line, label=name, marker="o")
        ends[name] = own[:, -1]
    for name, end in {**ends, "difference": ends["bradley_terry"] - ends["margin_ranking"]}.items():
        print(f"{name:>16s}" + "".join(f"{x:10.3f}" for x in (*end, end.mean())) + f"   {end.min():.3f} to {end.max():.3f}")
    print(f"{'best possible':>16s}{best:10.3f}   the annotator's consistency on these pairs")
    ax_accuracy.axhline(best, color=PURPLE, linestyle="--", label="annotator's consistency")
    ax_accuracy.set(xlabel="optimizer step", ylabel="pair accuracy", title=f"{len(val.pairs)} validation pairs")
    ax_accuracy.legend(loc="lower right")
    print(save_figure(
        fig, figure_path(__file__, "losses", config.quick), title="Two losses on pairs",
        caption="Left and middle: the losses and their gradients, by the difference of the two rewards. Right: reward "
                f"models trained with plain Bradley-Terry and with margin ranking, {config.steps} steps of "
                f"{config.batch_size} pairs, the same batches and first weights, {config.n_seed} seeds: mean, and band from "
                "lowest to highest. Dashed: how often the annotator prefers the better answer of these pairs, "
                f"{best:.3f}, the most that can be expected. Where bands overlap, these runs do not tell the losses apart.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
