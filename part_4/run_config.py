"""Lesson 4.5 - the flags of part_4/train.py, and presets from a laptop's model to one of eight billion weights."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, InputError, check_positive, option
from part_2.byte_tokenizer import N_BYTES
from part_2.corpus import DATA_HELP
from part_3 import train as part_3_train
from part_3.modern_gpt import ModernGPT
from part_4.distributed import PARALLEL
from part_4.lr_schedule import SCHEDULES
from part_4.optimizer import OPTIMIZERS

RUNS = Path(__file__).resolve().parent / "runs"
MAY_CHANGE = {  # flags that a resumed run may give anew; those that change roundings change the end by as much
    "out", "tokens", "tokenizer", "device", "precision", "resume", "quick", "preset", "save_every", "keep_last", "log_every",
    "micro_batch_size", "parallel", "compile", "activation_checkpointing", "wandb", "max_skips", "eval_tokens"}
PRESETS = {
    "laptop": {},
    # GPT-2 small (Radford et al. 2019), with Llama's pieces; half a million tokens a step (Brown et al. 2020, table 2.1)
    "gpt2-124m": dict(
        optimizer="adamw", vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_kv_head=12, d_model=768,
        tie_embeddings=True, batch_size=512, micro_batch_size=16, steps=19000, lr=6e-4, min_lr=6e-5, warmup_steps=700,
        beta2=0.95, eval_every=250, save_every=1000),
    # The shapes of Llama 3.2 1B (its model card) and Llama 3.1 8B (Grattafiori et al. 2024, table 3), half their vocabulary
    "llama-1b": dict(
        optimizer="adamw", vocab_size=65536, block_size=4096, n_layer=16, n_head=32, n_kv_head=8, d_model=2048,
        d_hidden=8192, rope_base=500000.0, tie_embeddings=True, batch_size=256, micro_batch_size=4, steps=25000, lr=4e-4,
        min_lr=4e-5, warmup_steps=2000, beta2=0.95, eval_every=500, save_every=1000, activation_checkpointing=True),
    "llama-8b": dict(
        optimizer="adamw", vocab_size=65536, block_size=8192, n_layer=32, n_head=32, n_kv_head=8, d_model=4096,
        d_hidden=14336, rope_base=500000.0, batch_size=512, micro_batch_size=1, steps=40000, lr=3e-4, min_lr=3e-5,
        warmup_steps=2000, beta2=0.95, eval_every=500, save_every=500, activation_checkpointing=True),
}


@dataclass(frozen=True)
class Config(part_3_train.Config):
    """All flags of part_4/train.py; those that are not here are Part 3's."""

    preset: str = option("laptop", "sizes and settings that go together; a flag given beside it wins", tuple(PRESETS))
    data: str = option("tinyworld", DATA_HELP)
    out: str = option(str(RUNS / "train"), "the run directory")
    tokenizer: str = option("auto", "a .tiktoken file of part_4/train_tokenizer.py; auto: trained on the training text")
    vocab_size: int = option(1024, "ids of the tokenizer that auto trains, special ones included")
    tokens: str = option(str(RUNS / "tokens"), "where tokenised texts are kept")
    steps: int = option(900, "optimizer steps")
    batch_size: int = option(16, "windows a step, of all processes together")
    micro_batch_size: int | None = option(None, "windows in memory at a time, in each process; its whole share if left out")
    n_layer: int = option(3, "Transformer blocks")
    n_head: int = option(4, "attention heads")
    n_kv_head: int | None = option(None, "key-value heads, shared by n_head / n_kv_head query heads; n_head if left out")
    d_hidden: int | None = option(None, "width of the feed-forward layer; 8/3 of d_model if left out")
    qk_norm: bool = option(True, "RMSNorm on queries and keys")
    dropout: float = option(0.0, "dropout probability; some 0.2 for a text that is read many times")
    optimizer: str = option("muon", "AdamW, or Muon for the hidden matrices with AdamW for the rest; AdamW wants some "
                            "quarter of Muon's --lr", OPTIMIZERS)
    lr: float = option(0.02, "highest learning rate")
    min_lr: float = option(0.001, "learning rate at the end")
    schedule: str = option("cosine", "the learning rate's course after the warm-up", tuple(SCHEDULES))
    max_skips: int = option(20, "updates in a row that may be skipped for a loss or gradient that is no number")
    eval_windows: int = option(64, "validation windows of each evaluation during the run")
    eval_tokens: int = option(1_000_000, "validation tokens of the final evaluation, at most")
    save_every: int = option(100, "steps between checkpoints")
    keep_last: int = option(2, "checkpoints kept beside the best one")
    parallel: str = option("none", "how the processes that torchrun starts work together", PARALLEL)
    activation_checkpointing: bool = option(False, "compute activations again in the backward pass: less memory, more time")
    compile: bool = option(False, "torch.compile the model; on a CPU this needs a C++ compiler")
    wandb: bool = option(False, "log to Weights & Biases too, if it is installed")
    resume: str = option("no", "auto: go on from the newest checkpoint in --out, or start if there is none; yes: go on",
                         ("no", "auto", "yes"))
    quick: bool = option(False, QUICK_HELP)
    PRESETS: ClassVar[dict] = PRESETS
    QUICK: ClassVar[dict] = part_3_train.Config.QUICK | dict(
        out=str(RUNS / "quick"), n_head=2, n_kv_head=1, d_hidden=None, vocab_size=300, micro_batch_size=None, eval_windows=8,
        eval_tokens=2000, save_every=10, activation_checkpointing=False)

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "max_skips", "eval_windows", "save_every", "keep_last")
        if self.vocab_size <= N_BYTES:
            raise InputError(f"--vocab_size must be above {N_BYTES}, the bytes, for a special token, not {self.vocab_size}")
        if self.eval_tokens <= self.block_size:
            raise InputError(f"--eval_tokens must be above --block_size {self.block_size}, not {self.eval_tokens}")
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise InputError(f"--micro_batch_size must be at least 1, not {self.micro_batch_size}")

    def model_config(self, vocab_size):
        """The ModernGPTConfig of these flags."""
        return dataclasses.replace(super().model_config(vocab_size), d_hidden=self.d_hidden)

    def build_model(self, vocab_size):
        """The model of these flags, with fresh weights."""
        return ModernGPT(self.model_config(vocab_size))

    def n_micro(self, world_size):
        """Micro-batches a step in each of `world_size` processes. InputError when the batch cannot be divided so."""
        share, rest = divmod(self.batch_size, world_size)
        if rest:
            raise InputError(f"--batch_size {self.batch_size} must be divisible by the {world_size} processes")
        size = self.micro_batch_size or share
        if share % size:
            raise InputError(f"--micro_batch_size {size} must divide the {share} windows of each process")
        return share // size
