"""Lesson 1.4 - what do the heads of a trained attention layer look at, and which shapes does attention pass through?

First prints the shape of every tensor on the way through one layer. Then trains a model of two attention layers on
sequences of random letters that repeat (abcxabcxab...), where the next letter is known only to who finds the place where
this went on before. What to see: the trained first layer has heads that look one or two tokens back; the second layer
uses them to look at what followed the last time: induction heads (Olsson et al. 2022, "In-context Learning and Induction
Heads"). The sentence was never trained on. Untrained heads just spread their weight over what is allowed.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from tqdm import tqdm

from part_0.cli import QUICK_HELP, check_positive, command_line, option, run_script
from part_0.device import set_seed
from part_0.plotting import figure_path, heatmap, plt, save_figure
from part_1.induction import ALPHABET, N_TOKENS, AttentionOnlyModel, induction_scores, offset_scores, repeating_sequences
from part_1.multi_head import MultiHeadAttention, merge_heads


@dataclass(frozen=True)
class Config:
    steps: int = option(1500, "training steps")
    batch_size: int = option(32, "sequences a step")
    n_head: int = option(4, "heads a layer")
    d_model: int = option(64, "width C")
    lr: float = option(3e-3, "highest learning rate")
    sentence: str = option("to be or not to be", f"text to look at: a-z and space, at most {N_TOKENS} characters")
    seed: int = option(0, "seed of weights and sequences")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = dict(steps=5, batch_size=4)

    def __post_init__(self):
        check_positive(self, "steps", "batch_size", "n_head", "d_model", "lr")
        if not self.sentence or len(self.sentence) > N_TOKENS or set(self.sentence) - set(ALPHABET):
            raise ValueError(f"--sentence must be 1 to {N_TOKENS} of the characters a-z and space, not '{self.sentence}'")
        MultiHeadAttention(self.d_model, self.n_head)  # refuses a width that the heads do not divide


def train(model, config):
    """Train on fresh sequences; returns the share of repeated letters that the last batch foresaw."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=config.steps + 1, pct_start=0.1)
    bar = tqdm(range(config.steps), unit="step", disable=None)
    for _ in bar:
        tokens, periods = repeating_sequences(config.batch_size)
        logits = model(tokens[:, :-1])
        known = torch.arange(1, N_TOKENS) > periods  # (B, T-1): targets that followed this token before
        loss = nn.functional.cross_entropy(logits[known], tokens[:, 1:][known])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    accuracy = (logits[known].argmax(-1) == tokens[:, 1:][known]).float().mean().item()
    print(f"after {config.steps} steps: {accuracy:.1%} of the repeated letters foreseen (chance {1 / len(ALPHABET):.1%})")
    return accuracy


def trace_shapes(layer, x):
    """The name and shape of each tensor on the way through an attention layer. x: (B, T, C)."""
    query, key, value = layer.queries_keys_values(x)
    weights = layer.attention_weights(x, causal=True)
    heads = weights @ value
    merged = merge_heads(heads)
    return {"x (B, T, C)": x, "query, key, value (B, H, T, D)": query, "scores, weights (B, H, T, T)": weights,
            "heads (B, H, T, D)": heads, "concatenated (B, T, C)": merged, "output (B, T, C)": layer.project(merged)}


def main(config):
    set_seed(config.seed)
    model = AttentionOnlyModel(config.d_model, config.n_head)
    for name, tensor in trace_shapes(model.layers[0], torch.randn(1, len(config.sentence), config.d_model)).items():
        print(f"{name:32s} {tuple(tensor.shape)}")
    sentence = torch.tensor([[ALPHABET.index(letter) for letter in config.sentence]])
    untrained = model.attention_weights(sentence)[:, 0]  # (2, H, T, T)
    accuracy = train(model, config)
    trained = model.attention_weights(sentence)[:, 0]
    tokens, periods = repeating_sequences(64)
    layer_1, layer_2 = model.attention_weights(tokens)

    fig, axes = plt.subplots(3, config.n_head, figsize=(2.9 * config.n_head, 9), sharex=True, sharey=True, squeeze=False)
    T = len(config.sentence)
    letters = config.sentence.replace(" ", "·")
    roles_1 = [f": {row.argmax()} back {row.max():.2f}" for row in offset_scores(layer_1[:, :, :T, :T])]
    roles_2 = [f": induction {weight:.2f}" for weight in induction_scores(layer_2, periods)]
    rows = (("untrained layer 2", untrained[1], [""] * config.n_head), ("trained layer 1", trained[0], roles_1),
            ("trained layer 2", trained[1], roles_2))
    for row, (name, weights, roles) in zip(axes, rows):
        for h, ax in enumerate(row):
            heatmap(ax, weights[h], xlabel="key" if row is axes[-1] else "", ylabel=f"{name}\nquery" if h == 0 else "",
                    xticks=letters, yticks=letters, aspect="equal", vmin=0, vmax=1)
            ax.tick_params(labelsize=9, length=0)
            ax.set_title(f"head {h + 1}{roles[h]}")
    fig.colorbar(axes[0, 0].images[0], ax=axes, label="attention weight", shrink=0.5)
    path = save_figure(
        fig, figure_path(__file__, "visualize_multi_head", config.quick),
        title=f"What heads look at in “{config.sentence}”, before and after training",
        caption="Rows are queries, columns keys (· is a space); a row sums to 1. Untrained heads spread their weight. After "
                "training on repeating random letters, heads of layer 1 look a fixed number of tokens back (a bright "
                "diagonal), and heads of layer 2 look at what followed when this letter came before: where a phrase comes "
                "again, its first time lights up. The numbers are the mean weight on that pattern in fresh sequences (layer "
                "1: among as many tokens as the sentence has).",
        command=command_line(__file__, config), numbers={"accuracy": accuracy, "device": "cpu"})
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
