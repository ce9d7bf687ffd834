"""Lesson 8.4 - the flags of part_8/train_ppo.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, check_positive, option
from part_0.device import DEVICES
from part_2.sampling import check_sampling
from part_4.lr_schedule import SCHEDULES
from part_6.sft_config import RUNS as SFT_RUNS
from part_7.reward_config import RUNS as REWARD_RUNS
from part_8.policy import CRITICS
from part_8.prompts import TASKS, read_families

RUNS = Path(__file__).resolve().parent / "runs"
MAY_CHANGE = {  # flags that a resumed run may give anew
    "sft", "reward_model", "out", "device", "precision", "resume", "quick", "save_every", "keep_last"}


@dataclass(frozen=True)
class Config:
    """All flags of part_8/train_ppo.py."""

    sft: str = option(str(SFT_RUNS / "sft" / "best.pt"), "policy and reference, a checkpoint of part_6/train_sft.py")
    reward_model: str = option(str(REWARD_RUNS / "reward_model" / "best.pt"),
                               "the reward, a checkpoint of part_7/train_reward_model.py")
    data: str = option(TASKS, f"{TASKS}: prompts about the generated world; or a file of one's own, a JSON object a line")
    families: str = option("story", "task families of the prompts, separated by commas, or all")
    n_prompts: int = option(4000, "prompts to learn from")
    out: str = option(str(RUNS / "ppo"), "the run directory")
    steps: int = option(40, "steps: a batch of answers, and what is learnt from it")
    batch_size: int = option(128, "answers a step")
    block_size: int = option(40, "most tokens of an answer, the end token with them")
    temperature: float = option(1.0, "of sampling, and of every log-probability")
    top_k: int | None = option(None, "sample from the k best tokens only, and score likewise; all of them if left out")
    top_p: float | None = option(None, "sample from the best tokens of this probability together; all if left out")
    critic: str = option("policy", "what the value network begins as: the policy, the reward model's encoder, or "
                                   "shared: none of its own, a head on the policy", CRITICS)
    beta: float = option(0.15, "weight of the KL penalty, in reward a nat")
    kl_target: float = option(0.0, "nats an answer that beta is adapted to; 0: beta stays")
    kl_horizon: int = option(2000, "answers in which beta may change by a fifth")
    kl_length: float = option(0.0, "nats an answer above which answers are made shorter, below half of it longer; 0: never")
    no_end_penalty: float = option(1.0, "taken off the score of an answer without end token")
    scale_scores: bool = option(False, "divide scores by the spread of all scores so far")
    whiten_rewards: bool = option(True, "rewards of a batch get spread 1 and keep their mean")
    whiten_advantages: bool = option(True, "advantages of a batch get spread 1 and mean 0")
    gamma: float = option(1.0, "discount")
    lam: float = option(0.95, "lambda of the advantages: 1 no bias, 0 least variance")
    epochs: int = option(2, "times each answer is learnt from")
    minibatch_size: int = option(64, "answers an update")
    clip: float = option(0.2, "the ratio's clip range, eps")
    value_clip: float = option(0.2, "values that are further from the old ones than this are pulled no further in a step, "
                                      "in units of the rewards that are learnt from; 0: no clipping")
    value_coef: float = option(0.1, "weight of the value loss, where --critic shared")
    entropy_coef: float = option(0.0, "weight of the entropy bonus")
    kl_stop: float = option(0.1, "half the squared log ratio, a token, above which a step's epochs end; 0: never")
    lr: float = option(3e-4, "highest learning rate of the policy")
    min_lr: float = option(2e-5, "learning rate of the policy at the end; the critic's falls by the same factor")
    value_lr: float = option(1e-3, "learning rate of a critic of its own")
    warmup_steps: int = option(0, "steps of linear warm-up, counted from the first, those of --value_warmup too")
    value_warmup: int = option(5, "first steps, in which the critic alone learns")
    schedule: str = option("linear", "the learning rate's course", tuple(SCHEDULES))
    beta2: float = option(0.95, "AdamW's second-moment decay")
    weight_decay: float = option(0.0, "weight decay, on matrices only")
    grad_clip: float = option(1.0, "each gradient's norm, policy's and critic's, is clipped to this")
    save_every: int = option(20, "steps between checkpoints")
    keep_last: int = option(2, "checkpoints kept")
    n_held_out: int = option(300, "held-out prompts that are answered before and after; 0 for none")
    n_tasks: int = option(100, "held-out tasks of each family that are answered greedily before and after; 0 for none")
    seed: int = option(1, "seed of prompts, samples and minibatches")
    device: str = option("auto", "where to run", DEVICES)
    precision: str = option("fp32", "of the matrix products in scoring and learning; in bf16 the probability of a "
                                    "token differs by about a percent from pass to pass", ("fp32", "bf16"))
    resume: str = option("no", "auto: go on from the newest checkpoint in --out, or start if there is none; yes: go on",
                         ("no", "auto", "yes"))
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(sft=str(SFT_RUNS / "quick" / "best.pt"),
                                 reward_model=str(REWARD_RUNS / "quick" / "best.pt"), out=str(RUNS / "quick"),
                                 n_prompts=40, steps=4, batch_size=16, minibatch_size=8, block_size=12, value_warmup=1,
                                 save_every=2, n_held_out=8, n_tasks=2)

    def __post_init__(self):
        check_positive(self, "n_prompts", "steps", "batch_size", "block_size", "temperature", "epochs", "minibatch_size",
                       "kl_horizon", "clip", "lr", "value_lr", "grad_clip", "save_every", "keep_last")
        if not self.out:
            raise InputError("--out must not be empty")
        for name in ("beta", "kl_target", "kl_length", "no_end_penalty", "value_clip", "value_coef", "entropy_coef",
                     "kl_stop", "min_lr", "warmup_steps", "value_warmup", "weight_decay", "n_held_out", "n_tasks"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} must not be negative, but is {getattr(self, name)}")
        for name in ("gamma", "lam"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"--{name} must be in [0, 1], not {getattr(self, name)}")
        if not 0 <= self.beta2 < 1:
            raise InputError(f"--beta2 must be in [0, 1), not {self.beta2}")
        if self.clip >= 1:
            raise InputError(f"--clip must be below 1, not {self.clip}")
        if self.min_lr > self.lr:
            raise InputError(f"--min_lr {self.min_lr} must not be above --lr {self.lr}")
        if self.minibatch_size > self.batch_size or self.batch_size > self.n_prompts:
            raise InputError(f"--minibatch_size {self.minibatch_size}, --batch_size {self.batch_size} and --n_prompts "
                             f"{self.n_prompts} must be in this order, the smallest first")
        if self.kl_target and not self.beta:
            raise InputError("--kl_target needs a --beta above 0: a coefficient of 0 cannot grow by factors")
        if self.kl_target and self.batch_size >= 5 * self.kl_horizon:
            raise InputError(f"--kl_horizon {self.kl_horizon} must be above a fifth of --batch_size {self.batch_size}: beta "
                             "would change its sign")
        if self.value_warmup >= self.steps:
            raise InputError(f"--value_warmup {self.value_warmup} must be below --steps {self.steps}: the policy would "
                             "never learn")
        check_sampling(self.temperature, self.top_k, self.top_p)
        read_families(self.families)
