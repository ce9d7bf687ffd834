"""Lesson 1.2 - what exactly does attention compute? Three tokens, and every number of it.

Prints each matrix on the way with its largest difference to PyTorch's, and draws them. What to see: the query of "sat" fits
the key of "cat" best, so its row of weights leans there and its output lies nearest to cat's value. With the causal mask
the weights above the diagonal are exactly zero and "the" can only look at itself.
"""
import pathlib, sys; sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that part_N is found

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from part_0.cli import QUICK_HELP, command_line, option, run_script
from part_0.plotting import figure_path, heatmap, plt, save_figure
from part_1.attention_numpy import TOKENS, W_KEY, W_QUERY, W_VALUE, Attention, X, attention


@dataclass(frozen=True)
class Config:
    causal: bool = option(True, "let a token see only itself and what is before it")
    quick: bool = option(False, QUICK_HELP)
    QUICK: ClassVar[dict] = {}


def torch_attention(x, w_query, w_key, w_value, causal=False):
    """The same by PyTorch: arguments and result as in `attention`. With the identity as values the output is the weights."""
    x, *matrices = (torch.from_numpy(part) for part in (x, w_query, w_key, w_value))
    query, key, value = (F.linear(x, matrix.T) for matrix in matrices)
    scores = torch.einsum("id,jd->ij", query, key) / query.shape[-1] ** 0.5
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    weights, output = (F.scaled_dot_product_attention(query[None], key[None], values[None], is_causal=causal)[0]
                       for values in (torch.eye(len(x), dtype=x.dtype), value))
    return Attention(*(part.numpy() for part in (query, key, value, scores, weights, output)))


def main(config):
    result = attention(X, W_QUERY, W_KEY, W_VALUE, config.causal)
    matrices = {"X": X, "Wq": W_QUERY, "Wk": W_KEY, "Wv": W_VALUE, "Q = X Wq": result.query, "K = X Wk": result.key,
                "V = X Wv": result.value, "S = Q K^T / sqrt(2)": result.scores, "A = softmax(S)": result.weights,
                "Y = A V": result.output}
    for name, matrix in matrices.items():
        print(f"\n{name}")
        for row in matrix:
            print("  ".join(f"{value:9.6f}" for value in row))

    print("\nlargest difference to PyTorch")
    for name, ours, theirs in zip(result._fields, result, torch_attention(X, W_QUERY, W_KEY, W_VALUE, config.causal)):
        visible = ours > -np.inf  # not the masked scores
        print(f"{name:8s} {np.abs(theirs[visible] - ours[visible]).max():.1e}")

    fig, axes = plt.subplots(2, 3, figsize=(10, 6))
    panels = (("Q = X Wq", "queries"), ("K = X Wk", "keys"), ("V = X Wv", "values"),
              ("S = Q K^T / sqrt(2)", "scores: query times key"), ("A = softmax(S)", "weights: a row sums to 1"),
              ("Y = A V", "outputs: means of the values"))
    for ax, (name, meaning) in zip(axes.flat, panels):
        square = name[0] in "SA"
        heatmap(ax, matrices[name], fmt="{:.2f}", cmap="cividis", yticks=TOKENS, xticks=TOKENS if square else range(2),
                ylabel="query token" if square else "token", xlabel="key token" if square else "dimension")
        ax.set_title(f"{name}\n{meaning}")
    path = save_figure(
        fig, figure_path(__file__, "attention_numpy", config.quick), title="Attention by hand: three tokens",
        caption="Top: each token's query, key and value. Bottom: the dot products of queries and keys give the scores, "
                "softmax turns each row into weights that sum to 1, and the output is the weighted mean of the values. With "
                "the causal mask a token has no score for a later one (blank), so its weight there is exactly 0.",
        command=command_line(__file__, config))
    print(path)


if __name__ == "__main__":
    run_script(main, Config, __doc__)
