"""Lesson 7.2 - the flags of part_7/train_reward_model.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, check_positive, option
from part_0.device import DEVICES, PRECISIONS
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import OPTIMIZERS
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.losses import LOSSES
from part_7.reward_model import POOLINGS

RUNS = Path(__file__).resolve().parent / "runs"
POLICY = "policy"  # the name of the generated data
MAY_CHANGE = {  # flags that a resumed run may give anew
    "sft", "out", "device", "precision", "resume", "quick", "save_every", "keep_last", "log_every", "n_micro"}


@dataclass(frozen=True)
class Config:
    """All flags of part_7/train_reward_model.py. With a file of preferences n_stories, n_exact, n_test and temperature play
    no part."""

    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "the fine-tuned model, a checkpoint of part_6/train_sft.py")
    data: str = option(POLICY, f"{POLICY}: the fine-tuned model's own answers, judged by the annotator; or a file of "
                               "preferences, a JSON object a line")
    n_stories: int = option(2800, "story prompts to train on; 6 samples each")
    n_exact: int = option(4200, "tasks of the other families to train on; 2 samples each")
    n_test: int = option(600, "held-out story prompts, and as many other tasks, of the final figures")
    temperature: float = option(0.4, "the annotator's; near 0 he never errs")
    out: str = option(str(RUNS / "reward_model"), "the run directory")
    steps: int = option(900, "optimizer steps")
    batch_size: int = option(40, "pairs a step")
    block_size: int = option(256, "most tokens of prompt and answer; a longer one loses its beginning")
    n_micro: int = option(2, "parts of a batch, of pairs of like length: less padding, less memory")
    pooling: str = option("mean", "mean over the answer's tokens, or its last one", POOLINGS)
    causal: bool = option(False, "keep the decoder's mask: tokens do not see what follows")
    loss: str = option("bradley_terry", "the loss of a pair", tuple(LOSSES))
    margin: float | None = option(None, "lead that the loss asks for; 0 for bradley_terry, 1 for margin_ranking if left out")
    label_smoothing: float = option(0.0, "share of the choices that bradley_terry takes for wrong")
    centring: float = option(0.01, "weight of the squared sum of a pair's rewards: keeps each prompt's around 0")
    optimizer: str = option("muon", "as in part_4/train.py", OPTIMIZERS)
    schedule: str = option("cosine", "the learning rate's course after the warm-up", tuple(SCHEDULES))
    lr: float = option(0.005, "highest learning rate")
    min_lr: float = option(0.00025, "learning rate at the end")
    warmup_steps: int = option(20, "steps of linear warm-up")
    beta2: float = option(0.95, "AdamW's second-moment decay")
    weight_decay: float = option(0.1, "weight decay, on matrices only")
    grad_clip: float = option(1.0, "the gradient's norm is clipped to this")
    eval_every: int = option(200, "steps between evaluations")
    save_every: int = option(200, "steps between checkpoints")
    keep_last: int = option(2, "checkpoints kept beside the best one")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    seed: int = option(1, "seed of prompts, samples, choices, new weights and batches")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("auto", "of the matrix products", PRECISIONS)
    resume: str = option("no", "auto: go on from the newest checkpoint in --out, or start if there is none; yes: go on",
                         ("no", "auto", "yes"))
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"), out=str(RUNS / "quick"), n_stories=40, n_exact=21,
                                 n_test=14, steps=20, batch_size=8, warmup_steps=5, eval_every=10, save_every=10,
                                 log_every=5)

    def __post_init__(self):
        check_positive(self, "n_stories", "n_exact", "n_test", "temperature", "steps", "batch_size", "block_size", "n_micro",
                       "lr", "grad_clip", "eval_every", "save_every", "keep_last", "log_every")
        if not self.out:
            raise InputError("--out must not be empty")
        for name in ("warmup_steps", "min_lr", "weight_decay", "centring"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must not be negative, but is {getattr(self, name)}")
        if self.min_lr > self.lr:
            raise InputError(f"--min_lr {self.min_lr} must not be above --lr {self.lr}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"--beta2 must be in [0, 1), not {self.beta2}")
        if self.margin is not None and self.margin < 0:
            raise InputError(f"--margin must not be negative, but is {self.margin}")
        if not 0 <= self.label_smoothing < 0.5:
            raise InputError(f"--label_smoothing must be in [0, 0.5), not {self.label_smoothing}")
        if self.label_smoothing and self.loss != "bradley_terry":
            raise InputError(f"--label_smoothing is for --loss bradley_terry, not {self.loss}")
        if self.n_micro > self.batch_size:
            raise InputError(f"--n_micro {self.n_micro} must not be above --batch_size {self.batch_size}")

    def loss_options(self):
        """The arguments of the loss, by name."""
        options = {"centring": self.centring}
        if self.margin is not None:
            options["margin"] = self.margin
        if self.label_smoothing:  # which margin_ranking does not know
            options["label_smoothing"] = self.label_smoothing
        return options
