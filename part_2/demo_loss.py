"""Lesson 2.3 - how is cross-entropy kept exact for large logits, and where must a training run start?

Compares the textbook formula -log(exp(z_y) / sum exp z) with the shifted one, for logits of growing size, in fp32 against
fp64. And measures the loss of untrained models with vocabularies of different size. What to see: the textbook formula
breaks down as soon as a probability becomes 0 in fp32 (or, above 88, exp overflows); the shifted one never does. Untrained
models start on the line ln V.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import BLUE, ORANGE, RED, figure_path, plt, save_figure
from part_2.gpt import GPT, GPTConfig
from part_2.loss import cross_entropy


@dataclass(frozen=True)
class Config:
    n_examples: int = option(256, "random rows of logits averaged over")
    d_model: int = option(64, "width of the untrained models")
    seed: int = option(0, "seed of logits, models and tokens")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(n_examples=16, d_model=16)

    def __post_init__(self):
        check_positive(self, "n_examples", "d_model")
        GPTConfig(1, 1, 1, 2, self.d_model)  # refuses a width that two heads do not divide


def textbook_cross_entropy(logits, targets):
    """What the definition says, word for word; exp overflows in fp32 above 88.7."""
    probabilities = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    return -probabilities.gather(-1, targets[:, None]).log().mean()


@torch.no_grad()
def initial_loss(vocab_size, config):
    """The loss of an untrained GPT on random tokens, in nats per token."""
    model = GPT(GPTConfig(vocab_size, block_size=32, n_layer=2, n_head=2, d_model=config.d_model))
    tokens = torch.randint(vocab_size, (8, 33))
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).item()


def main(config):
    set_seed(config.seed)
    sizes = torch.logspace(0, 4, 33).tolist()
    logits, targets = torch.rand(config.n_examples, 50) * 2 - 1, torch.randint(50, (config.n_examples,))
    errors = {"textbook": [], "shifted by the maximum": []}
    for size in sizes:
        truth = F.cross_entropy((logits * size).double(), targets).item()
        for name, function in zip(errors, (textbook_cross_entropy, cross_entropy)):
            errors[name].append(abs(function(logits * size, targets).item() / truth - 1))
    broken = [size for size, error in zip(sizes, errors["textbook"]) if not math.isfinite(error)]
    print(f"the textbook formula gives no number from logits of about {broken[0]:.0f} on; "
          f"the shifted one is off by at most {max(errors['shifted by the maximum']):.0e}")

    vocabularies = (16, 64, 257, 1024, 4096)
    losses = [initial_loss(size, config) for size in vocabularies]
    for size, loss in zip(vocabularies, losses):
        print(f"vocabulary {size:5d}: untrained loss {loss:.3f}, ln V = {math.log(size):.3f}")

    fig, (ax_error, ax_initial) = plt.subplots(1, 2, figsize=(10, 4.5))
    for (name, values), color, marker in zip(errors.items(), (ORANGE, BLUE), ("s", ".")):  # small over large: both show
        ax_error.loglog(sizes, [max(value, 1e-9) for value in values], color=color, marker=marker, markersize=8, label=name)
    ax_error.axvspan(broken[0], sizes[-1], color=RED, alpha=0.15, label="textbook: inf or nan")
    ax_error.set(xlabel="size of the logits", ylabel="relative error in fp32", title="stable for huge logits",
                 ylim=(5e-10, 1e-5))
    ax_error.legend(loc="upper left")
    ax_initial.plot(vocabularies, [math.log(size) for size in vocabularies], color="black", linestyle="--", label="ln V")
    ax_initial.plot(vocabularies, losses, color=BLUE, marker="o", linestyle="none", markersize=9, label="untrained GPT")
    ax_initial.set(xscale="log", xlabel="vocabulary size V", ylabel="loss (nats per token)", title="where every run starts")
    ax_initial.legend()
    path = save_figure(
        fig, figure_path(__file__, "loss", config.quick), title="Cross-entropy: stable, and ln V at the start",
        caption="Left: relative error of the two formulas in fp32 (points at the lower edge are exact); the textbook one "
                "gives inf or nan as soon as a probability leaves fp32's range. Right: an untrained model knows nothing "
                "and loses ln V nats a token; a run that starts elsewhere has a bug.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
