"""Lesson 9.5 - the flags of part_9/train_grpo.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, check_positive, option
from part_0.device import DEVICES
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import OPTIMIZERS
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.reward_config import RUNS as REWARD_RUNS
from part_8.prompts import TASKS, read_families
from part_9.grpo_loss import AGGREGATIONS
from part_9.kl import ESTIMATORS
from part_9.reward_functions import REWARDS

RUNS = Path(__file__).resolve().parent / "runs"
MAY_CHANGE = {  # flags that a resumed run may give anew
    "sft", "reward_model", "out", "device", "precision", "resume", "quick", "save_every", "keep_last", "parallel"}
OVERLONG = ("score", "mask", "penalty")


@dataclass(frozen=True)
class Config:
    """All flags of part_9/train_grpo.py."""

    preset: str = option("stories", "stories: the learned reward; verifier: right or wrong, tasks of one family; a flag "
                                   "given beside it wins", ("stories", "verifier"))
    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "policy and reference, a checkpoint of part_6/train_sft.py")
    reward: str = option("model", f"{', '.join(REWARDS)} (1 for a right answer), or a Python function as FILE.py:NAME")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "for --reward model, a checkpoint of part_7/train_reward_model.py")
    data: str = option(TASKS, f"{TASKS}: prompts about the generated world; or a file of one's own, a JSON object a line")
    families: str = option("story", "task families of the prompts, separated by commas, or all")
    n_prompts: int = option(4000, "prompts to learn from")
    out: str = option(str(RUNS / "grpo"), "the run directory")
    steps: int = option(40, "steps: a batch of answers, and what is learnt from it")
    batch_size: int = option(128, "answers a step")
    group_size: int = option(8, "answers to each prompt, G")
    block_size: int = option(40, "most tokens of an answer, the end token with them")
    rollout_size: int | None = option(None, "answers sampled at a time, with random numbers of their own; a process's "
                                            "share if left out")
    temperature: float = option(1.0, "of sampling, and of every log-probability")
    normalise: bool = option(True, "divide advantages by the group's spread")
    resample: int = option(0, "times a step asks further prompts in place of groups whose answers are all scored alike")
    aggregation: str = option("token", "how an update's tokens are averaged: sequence GRPO, token DAPO, constant Dr. GRPO",
                              AGGREGATIONS)
    overlong: str = option("score", "answers without end token: scored like any other, left out of the loss, or a soft "
                                    "penalty near the limit", OVERLONG)
    overlong_margin: int = option(8, "tokens before the limit in which the soft penalty grows to 1")
    no_end_penalty: float = option(0.0, "taken off the reward of an answer without end token")
    beta: float = option(0.1, "weight of the KL penalty in the loss")
    kl: str = option("k3", "estimator of the KL penalty: k3 GRPO's, k2 the right gradient, k1 none (lesson 9.4)", ESTIMATORS)
    kl_weighted: bool = option(False, "weight the estimate by the ratio of new and old probability: right for k1 and k3")
    epochs: int = option(2, "times each answer is learnt from")
    minibatch_size: int = option(64, "answers an update")
    clip: float = option(0.2, "the ratio's clip range below 1")
    clip_high: float | None = option(None, "the clip range above 1; the same if left out")
    entropy_coef: float = option(0.0, "weight of the entropy bonus")
    optimizer: str = option("adamw", "as in part_4/train.py", OPTIMIZERS)
    lr: float = option(3e-4, "highest learning rate")
    min_lr: float = option(2e-5, "learning rate at the end")
    warmup_steps: int = option(0, "steps of linear warm-up")
    schedule: str = option("linear", "the learning rate's course", tuple(SCHEDULES))
    beta2: float = option(0.95, "AdamW's second-moment decay")
    weight_decay: float = option(0.0, "weight decay, on matrices only")
    grad_clip: float = option(1.0, "the gradient's norm is clipped to this")
    save_every: int = option(20, "steps between checkpoints")
    keep_last: int = option(2, "checkpoints kept")
    n_held_out: int = option(300, "held-out prompts that are answered before and after; 0 for none")
    n_tasks: int = option(100, "held-out tasks of each family that are answered greedily before and after; 0 for none")
    seed: int = option(1, "seed of prompts, samples and minibatches")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("fp32", "of the matrix products in scoring and learning; in bf16 the probability of a "
                                    "token differs by about a percent from pass to pass", ("fp32", "bf16"))
    parallel: str = option("none", "ddp: several processes, each with a share of every batch; started with torchrun",
                           ("none", "ddp"))
    resume: str = option("no", "auto: go on from the newest checkpoint in --out, or start if there is none; yes: go on",
                         ("no", "auto", "yes"))
    quick: bool = option(False, QUICK_HELP)
    PRESETS: ClassVar[dict] = {
        "stories": {},
        "verifier": dict(reward="verifier", families="where", steps=120, resample=2, normalise=False, beta=0.03, lr=5e-4,
                         min_lr=5e-5, minibatch_size=128, out=str(RUNS / "verifier"))}
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"),
                                 reward_model=str(REWARD_RUNS / "quick" / "best.pt"), out=str(RUNS / "quick"),
                                 n_prompts=40, steps=4, batch_size=16, group_size=4, minibatch_size=8, block_size=12,
                                 save_every=2, n_held_out=8, n_tasks=2)

    def __post_init__(self):
        check_positive(self, "n_prompts", "steps", "batch_size", "block_size", "temperature", "epochs", "minibatch_size",
                       "clip", "lr", "grad_clip", "save_every", "keep_last", "overlong_margin")
        if not self.out:
            raise InputError("--out must not be empty")
        for name in ("beta", "no_end_penalty", "entropy_coef", "min_lr", "warmup_steps", "weight_decay", "n_held_out",
                     "n_tasks", "resample"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must not be negative, but is {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"--beta2 must be in [0, 1), not {self.beta2}")
        if self.clip >= 1:
            raise InputError(f"--clip must be below 1, not {self.clip}")
        if self.clip_high is not None and self.clip_high <= 0:
            raise InputError(f"--clip_high must be above 0, not {self.clip_high}")
        if self.min_lr > self.lr:
            raise InputError(f"--min_lr {self.min_lr} must not be above --lr {self.lr}")
        if self.group_size < 2:
            raise InputError(f"--group_size must be at least 2, not {self.group_size}: an answer is compared with the "
                             "others of its group")
        for name in ("batch_size", "rollout_size"):
            size = getattr(self, name)
            if size is not None and (size < 1 or size % self.group_size):
                raise InputError(f"--{name} {size} must be a multiple of --group_size {self.group_size}")
        if self.minibatch_size > self.batch_size or self.batch_size > self.n_prompts * self.group_size:
            raise InputError(f"--minibatch_size {self.minibatch_size}, --batch_size {self.batch_size} and --n_prompts "
                             f"times --group_size {self.n_prompts * self.group_size} must be in this order, the smallest "
                             "first")
        if self.overlong == "penalty" and self.overlong_margin > self.block_size:
            raise InputError(f"--overlong_margin {self.overlong_margin} is above --block_size {self.block_size}")
        if self.reward == "verifier" and self.data != TASKS:
            raise InputError("--reward verifier is for --data tasks: only they have a verifier")
        read_families(self.families)
