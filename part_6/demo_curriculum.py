"""Lesson 6.3 - does the order of the examples matter?

Fine-tunes the base model of part_4/train.py with each of the four curricula, from three seeds: the same tasks to draw
from, as many steps, and as many examples a step. uniform draws each once an epoch; the others draw anew in each step, so
what is in early is also seen more often. Along the way it answers held-out validation tasks greedily, and the verifier
judges. What to see: middle, which curves stay apart by more than the bands of their seeds, and from when on; right, at
which difficulties the order still shows at the end.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import ClassVar

import numpy as np
import torch
from tqdm import tqdm

from part_0.cli import QUICK_HELP, InputError, check_positive, command_line, option, run_script
from part_0.device import DEVICES, pick_device, pick_precision, set_seed
from part_0.plotting import BLACK, BLUE, GREEN, ORANGE, band, figure_path, plt, save_figure
from part_2.optimization import warmup_cosine
from part_4.bpe_training import in_processes
from part_4.grad_accumulation import accumulate_gradients
from part_4.optimizer import build_optimizers, set_learning_rate
from part_6.chat_data import turn
from part_6.chat_model import load_model, resize_vocabulary
from part_6.collator import pack, shift
from part_6.curriculum import CURRICULA, draw_batch
from part_6.evaluation import answer, judge
from part_6.prompt_template import chat_tokenizer, encode_chat
from part_6.task_families import DIFFICULTIES, EXACT
from part_6.tasks import make_tasks

RUNS, TRAINER = Path(__file__).resolve().parents[1] / "part_4" / "runs", "part_4/train.py"
STYLES = {"uniform": (BLACK, "-"), "easy_first": (BLUE, "--"), "short_first": (GREEN, ":"), "hard_first": (ORANGE, "-.")}


@dataclass(frozen=True)
class Config:
    base: str = option(str(RUNS / "train" / "best.pt"), f"the base model, a checkpoint of {TRAINER}")
    families: str = option("reverse,add", "task families, with commas between")
    n_train: int = option(3600, "training tasks")
    n_val: int = option(15, "validation tasks of each family and difficulty")
    steps: int = option(130, "optimizer steps of each run")
    batch_size: int = option(32, "examples a step")
    lr: float = option(0.02, "highest learning rate")
    n_eval: int = option(5, "evaluations along a run")
    n_seed: int = option(3, "seeds, i.e. runs of each curriculum")
    seed: int = option(1, "the first seed, of the tasks and of their order")
    n_process: int = option(2, "runs side by side, each in a process with one thread")
    device: str = option("auto", "where to run", DEVICES)
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(base=str(RUNS / "quick" / "best.pt"), n_train=36, n_val=1, steps=4, batch_size=4, n_eval=2,
                                 n_seed=2)

    def __post_init__(self):
        check_positive(self, "n_train", "n_val", "steps", "batch_size", "lr", "n_eval", "n_seed", "n_process")
        if unknown := set(self.families.split(",")) - set(EXACT):
            raise InputError(f"--families may hold {', '.join(EXACT)}, not {', '.join(map(repr, sorted(unknown)))}")
        if self.batch_size > self.n_train or self.n_eval > self.steps:
            raise InputError(f"--batch_size {self.batch_size} must be at most --n_train {self.n_train}, and --n_eval "
                             f"{self.n_eval} at most --steps {self.steps}")


def fine_tune(config, job):
    """A run; job: (curriculum, seed). Returns the mean difficulty of each batch (steps,), the share of right answers by
    difficulty at each evaluation (n_eval, 6), and the number of tokens read."""
    kind, seed = job
    torch.set_num_threads(1)
    set_seed(seed)
    device, families = pick_device(config.device), config.families.split(",")
    model, tokenizer, _ = load_model(config.base, device, TRAINER)
    tokenizer = chat_tokenizer(tokenizer)
    model = resize_vocabulary(model, tokenizer.vocab_size).train()
    tasks = make_tasks("train", config.n_train, seed, families)
    val_tasks = make_tasks("val", config.n_val * len(DIFFICULTIES) * len(families), seed, families)
    examples = [shift(*encode_chat(turn(task.prompt, task.answer), tokenizer)) for task in tasks]
    difficulties, lengths = [task.difficulty for task in tasks], [len(inputs) for inputs, _ in examples]
    n_new = 1 + max(len(tokenizer.encode(" " + task.answer)) for task in val_tasks)  # the longest, with its end token
    optimizers = build_optimizers(model, "muon", config.lr, beta2=0.95, weight_decay=0.1)
    drawn, right, n_tokens = [], [], 0
    for step in range(config.steps):
        indices = draw_batch(kind, difficulties, lengths, seed, step, config.steps, config.batch_size)
        batch = pack([examples[i] for i in indices], max(128, *lengths))
        inputs, targets, positions, segments = (part.to(device) for part in batch)
        accumulate_gradients(model, inputs, targets, dtype=pick_precision("auto", device),
                             context=dict(positions=positions, segments=segments))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        set_learning_rate(optimizers, warmup_cosine(step, config.steps, config.lr, config.lr / 10, config.steps // 10))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        drawn.append(mean(difficulties[i] for i in indices))
        n_tokens += sum(lengths[i] for i in indices)
        if (step + 1) * config.n_eval // config.steps > step * config.n_eval // config.steps:
            records = judge(val_tasks, answer(model, tokenizer, [task.prompt for task in val_tasks], n_new=n_new))
            correct = np.reshape([record["correct"] for record in records], (config.n_val, len(DIFFICULTIES), -1))
            right.append(correct.mean(axis=(0, 2)))  # families and difficulties come in turn
    return np.array(drawn), np.array(right), n_tokens


def describe(values):
    """The mean of a number a seed, and from the lowest to the highest."""
    return f"{values.mean():.3f} ({values.min():.3f} to {values.max():.3f})"


def main(config):
    load_model(config.base, trainer=TRAINER)  # or refuse, before a process is started
    jobs = [(kind, seed) for kind in CURRICULA for seed in range(config.seed, config.seed + config.n_seed)]
    runs = list(tqdm(in_processes(partial(fine_tune, config), jobs, config.n_process), total=len(jobs), unit="run",
                     disable=None))
    evaluated = [-(-config.steps * i // config.n_eval) for i in range(1, config.n_eval + 1)]
    half, window = (config.n_eval - 1) // 2, max(1, config.steps // 20)
    uniform = np.array([right[-1].mean() for _, right, _ in runs[:config.n_seed]])  # at the end; CURRICULA begins with it
    fig, (ax_drawn, ax_step, ax_difficulty) = plt.subplots(1, 3, figsize=(12, 4.6), width_ratios=(3, 4, 4))
    for i, (kind, (color, line)) in enumerate(STYLES.items()):
        drawn, right, n_tokens = zip(*runs[i * config.n_seed:(i + 1) * config.n_seed])
        drawn = [np.convolve(run, np.ones(window) / window, "valid") for run in drawn]
        right, style = np.stack(right), dict(color=color, linestyle=line, label=kind)  # right: (n_seed, n_eval, 6)
        exact = right.mean(axis=2)
        band(ax_drawn, np.arange(len(drawn[0])) + window / 2, drawn, **style)
        band(ax_step, evaluated, exact, **style)
        band(ax_difficulty, DIFFICULTIES, right[:, -1], marker="o", **style)
        print(f"{kind:12s} exact match at step {evaluated[half]}: {describe(exact[:, half])}   at the end: "
              f"{describe(exact[:, -1])}, seed by seed "
              f"{' '.join(f'{lead:+.3f}' for lead in exact[:, -1] - uniform)} against uniform   "
              f"{mean(n_tokens):,.0f} tokens read")
    ax_drawn.set(xlabel="optimizer step", ylabel="mean difficulty", title="what is drawn")
    ax_step.set(xlabel="optimizer step", ylabel="exact match", title="validation tasks", ylim=(0, 1.02))
    ax_step.legend(loc="upper left")
    ax_difficulty.set(xlabel="difficulty", ylabel="exact match", title="at the end, by difficulty", ylim=(0, 1.02))
    print(save_figure(
        fig, figure_path(__file__, "curriculum", config.quick), title="Four ways to draw from the same examples",
        caption=f"The same base model, fine-tuned for {config.steps} steps of {config.batch_size} examples "
                f"({config.families.replace(',', ', ')}), {config.n_seed} seeds: mean, and band from lowest to highest. "
                f"Left: difficulty of the batches, each point the mean of {window} steps. Middle: greedy exact match on "
                f"{config.n_val * len(DIFFICULTIES) * len(config.families.split(','))} held-out validation tasks. Right: "
                "the same at the end, by difficulty. Where bands overlap, these runs do not tell the curricula apart.",
        command=command_line(__file__, config)))


if __name__ == "__main__":
    run_script(main, Config, __doc__)
