"""Lesson 6.2 - the flags of part_6/train_sft.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, check_positive, option
from part_0.device import DEVICES, PRECISIONS
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import OPTIMIZERS
from part_6.curriculum import CURRICULA
from part_6.sft_data import TASKS

RUNS = Path(__file__).resolve().parent / "runs"
BASE_RUNS = RUNS.parents[1] / "part_4" / "runs"
MAY_CHANGE = {  # flags that a resumed run may give anew
    "base", "out", "device", "precision", "resume", "quick", "save_every", "keep_last", "log_every", "max_rows"}


@dataclass(frozen=True)
class Config:
    """All flags of part_6/train_sft.py."""

    base: str = option(str(BASE_RUNS / "train" / "best.pt"), "the base model, a checkpoint of part_4/train.py")
    data: str = option(TASKS, f"{TASKS}: the task families; or a file of conversations, a JSON object a line")
    n_examples: int = option(60_000, "tasks that are made to train on")
    worked_steps: bool = option(True, "answers to tasks show their steps; else the result alone")
    multi_turn: float = option(0.3, "probability that a conversation of tasks goes on with one more")
    out: str = option(str(RUNS / "sft"), "the run directory")
    steps: int = option(2400, "optimizer steps")
    batch_size: int = option(48, "conversations a step")
    block_size: int = option(128, "tokens a row: as many conversations as fit are packed into it")
    packing: bool = option(True, "several conversations a row; else one, and padding behind it")
    replay: int = option(2, "rows a step of the base model's own text, against forgetting; 0 for none")
    max_rows: int | None = option(None, "rows in memory at a time; all of the batch if left out")
    curriculum: str = option("uniform", "the order of the examples", CURRICULA)
    lora_rank: int = option(0, "rank of LoRA's adapters; 0: all weights learn")
    lora_alpha: float = option(16.0, "the adapters count alpha / rank times")
    optimizer: str = option("muon", "as in part_4/train.py", OPTIMIZERS)
    schedule: str = option("cosine", "the learning rate's course after the warm-up", tuple(SCHEDULES))
    lr: float = option(0.01, "highest learning rate")
    min_lr: float = option(0.001, "learning rate at the end")
    warmup_steps: int = option(20, "steps of linear warm-up")
    beta2: float = option(0.95, "AdamW's second-moment decay")
    weight_decay: float = option(0.1, "weight decay, on matrices only")
    grad_clip: float = option(1.0, "the gradient's norm is clipped to this")
    eval_every: int = option(200, "steps between evaluations")
    save_every: int = option(200, "steps between checkpoints")
    keep_last: int = option(2, "checkpoints kept beside the best one")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    n_tasks: int = option(150, "held-out tasks of each family that are answered before and after; 0 for none")
    seed: int = option(1, "seed of tasks, new weights and batches")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("auto", "of the matrix products", PRECISIONS)
    resume: str = option("no", "auto: go on from the newest checkpoint in --out, or start if there is none; yes: go on",
                         ("no", "auto", "yes"))
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(base=str(BASE_RUNS / "quick" / "best.pt"), out=str(RUNS / "quick"), steps=20,
                                 n_examples=400, batch_size=8, block_size=256, warmup_steps=5, eval_every=10, save_every=10,
                                 log_every=5, n_tasks=2)

    def __post_init__(self):
        check_positive(self, "n_examples", "steps", "batch_size", "block_size", "lr", "grad_clip", "eval_every",
                       "save_every", "keep_last", "log_every", "lora_alpha")
        if not self.out:
            raise InputError("--out must not be empty")
        for name in ("warmup_steps", "min_lr", "weight_decay", "lora_rank", "n_tasks", "replay"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must not be negative, but is {getattr(self, name)}")
        if self.min_lr > self.lr:
            raise InputError(f"--min_lr {self.min_lr} must not be above --lr {self.lr}")
        if not 0 <= self.multi_turn < 1:
            raise InputError(f"--multi_turn must be in [0, 1), not {self.multi_turn}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"--beta2 must be in [0, 1), not {self.beta2}")
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"--max_rows must be at least 1, not {self.max_rows}")
        if self.lora_rank and self.optimizer != "adamw":
            raise InputError("--lora_rank needs --optimizer adamw: Muon is for whole matrices, not for thin factors of them")
