"""Lesson 5.3 - train a model with experts: Part 4's loop, word for word, with the layers of this part in the model.

    python3 part_5/train.py                              8 experts, 2 for each token, in every layer
    python3 part_5/train.py --moe_every 2                experts in every second layer
    python3 part_5/train.py --alpha 0.5                  dense layer and experts side by side
    python3 part_5/train.py --first_dense 1 --n_shared 1 --score sigmoid --balance_weight 0 --z_weight 0 --bias_rate 0.001

The last is nearly DeepSeek-V3's way, which has a very small balance loss within each sequence besides. Everything else (the
run directory, --resume auto, several processes) is as in part_4/train.py; balance and z-loss, entropy of the load and
dropped choices are logged beside the loss. Balance loss and capacity look at the tokens of one micro-batch in one process:
resumed with another --micro_batch_size or number of processes, a run goes on but does not end the same.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import ClassVar

from part_0.cli import QUICK_HELP, option, run_script
from part_2.corpus import DATA_HELP
from part_4 import train as part_4_train
from part_4.optimizer import OPTIMIZERS
from part_5.hybrid import HybridConfig, after_update, auxiliary_loss, hybrid_gpt
from part_5.router import SCORES

RUNS = Path(__file__).resolve().parent / "runs"


@dataclass(frozen=True)
class Config(part_4_train.Config):
    """All flags of part_5/train.py; those that are not here are Part 4's."""

    data: str = option("python-docs", DATA_HELP)
    out: str = option(str(RUNS / "train"), "the run directory")
    steps: int = option(300, "optimizer steps")
    n_layer: int = option(4, "Transformer blocks")
    n_head: int = option(6, "attention heads")
    n_kv_head: int | None = option(2, "key-value heads, shared by n_head / n_kv_head query heads each")
    d_model: int = option(192, "model width")
    dropout: float = option(0.2, "dropout probability; 0 for a text that is not read more than a few times")
    optimizer: str = option("adamw", "as in part_4/train.py", OPTIMIZERS)
    lr: float = option(3e-3, "highest learning rate")
    min_lr: float = option(1e-4, "learning rate at the end")
    n_expert: int = option(8, "experts in a layer")
    top_k: int = option(2, "experts that a token chooses")
    d_expert: int | None = option(None, "inner width of an expert; d_hidden / (top_k + n_shared) if left out")
    n_shared: int = option(0, "experts that every token uses besides")
    moe_every: int = option(1, "experts in every n-th layer")
    first_dense: int = option(0, "layers at the bottom without experts")
    alpha: float | None = option(None, "a dense layer beside the experts, with this weight; none if left out")
    score: str = option("softmax", "how a logit becomes an expert's score", SCORES)
    noisy: bool = option(False, "learned noise on the router's logits in training")
    capacity_factor: float | None = option(None, "in training an expert takes this times its even share and drops the rest; "
                                           "all if left out")
    balance_weight: float = option(0.05, "factor of the load-balancing loss; 0.01 is usual in longer runs")
    z_weight: float = option(0.001, "factor of the router's z-loss")
    bias_rate: float = option(0.0, "a step of the routers' balancing bias (DeepSeek-V3: 0.001); 0 for none")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = part_4_train.Config.QUICK | dict(out=str(RUNS / "quick"))

    def model_config(self, vocab_size):
        """The HybridConfig of these flags."""
        shape = asdict(super().model_config(vocab_size))
        own = {field.name for field in fields(HybridConfig)} & vars(self).keys() - shape.keys()
        return HybridConfig(**shape, **{name: getattr(self, name) for name in own})

    def build_model(self, vocab_size):
        """The model of these flags, with fresh weights."""
        return hybrid_gpt(self.model_config(vocab_size))


def main(config):
    """Train. Returns the history, as Part 4's main does."""
    return part_4_train.main(config, auxiliary_loss, after_update)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
