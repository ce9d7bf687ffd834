"""Lesson 3.4 - train a small ModernGPT: Part 2's loop, word for word, with Part 3's model in it.

    python3 part_3/train.py                                   the model that the demos of 3.5 and 3.6 look at
    python3 part_3/train.py --window 32 --sinks 4             with a sliding window
    python3 part_3/train.py --norm layernorm --positions learned --mlp gelu --bias --n_kv_head 4     Part 2's GPT again

Everything else (the run directory, resuming, the samples) is as in part_2/train.py.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, option, run_script
from part_2 import train as part_2_train
from part_3.modern_config import MLPS, NORMS, POSITIONS, ModernGPTConfig
from part_3.modern_gpt import ModernGPT

RUNS = Path(__file__).resolve().parent / "runs"


@dataclass(frozen=True)
class Config(part_2_train.Config):
    out: str = option(str(RUNS / "train"), "the run directory")
    steps: int = option(1000, "optimizer steps")
    n_kv_head: int | None = option(2, "key-value heads, shared by n_head / n_kv_head query heads each")
    norm: str = option("rmsnorm", "normalisation", NORMS)
    positions: str = option("rope", "how a token knows its place", POSITIONS)
    rope_base: float = option(10000.0, "base of the rotary frequencies")
    mlp: str = option("swiglu", "feed-forward layer", MLPS)
    qk_norm: bool = option(False, "RMSNorm on queries and keys")
    bias: bool = option(False, "biases in linear layers and LayerNorms")
    window: int | None = option(None, "tokens that a query sees, itself included; all when left out")
    sinks: int = option(0, "first tokens that stay visible behind the window")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = part_2_train.Config.QUICK | dict(out=str(RUNS / "quick"))

    def model_config(self, vocab_size):
        return ModernGPTConfig(
            vocab_size, self.block_size, self.n_layer, self.n_head, self.d_model, self.n_kv_head, norm=self.norm,
            positions=self.positions, rope_base=self.rope_base, mlp=self.mlp, qk_norm=self.qk_norm, window=self.window,
            sinks=self.sinks, tie_embeddings=self.tie_embeddings, bias=self.bias, dropout=self.dropout)


def main(config):
    """Train. Returns the history, as Part 2's main does."""
    return part_2_train.main(config, ModernGPT)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
