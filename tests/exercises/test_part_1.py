"""Checks of the exercises of Part 1: one for each function, named for it."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.exercises.compare import check


def test_causal_weights(answers):
    torch.manual_seed(0)
    query, key = torch.randn(2, 5, 4)
    scores, allowed = query @ key.T, torch.ones(5, 5).tril()
    hidden = (scores / 2).masked_fill(allowed == 0, float("-inf"))
    # torch's own attention; with the unit matrix for values its output is the weights
    right = F.scaled_dot_product_attention(query[None], key[None], torch.eye(5)[None], is_causal=True)[0]
    check("causal_weights(query, key) of two random (5, 4)", answers.causal_weights(query, key), right, {
        "the scores are not divided by the square root of D": (hidden * 2).softmax(-1),
        "the scores are divided by D and not by its square root": (hidden / 2).softmax(-1),
        "no key is hidden": (scores / 2).softmax(-1),
        "the earlier keys are hidden and not the later ones":
            (scores / 2).masked_fill(allowed.T == 0, float("-inf")).softmax(-1),
        "the weights are set to 0 after the softmax, so that rows no longer sum to 1": (scores / 2).softmax(-1) * allowed,
        "hidden scores are 0 and not minus infinity": (scores / 2 * allowed).softmax(-1),
        "the softmax runs over the queries and not over the keys": hidden.softmax(0)})


def test_into_heads(answers):
    x = torch.arange(2 * 3 * 4.0).view(2, 3, 4)  # two rows of three tokens of width 4: 0 1 2 3, then 4 5 6 7, ...
    right = torch.stack([x[:, :, :2], x[:, :, 2:]], dim=1)
    check("into_heads(x, n_head=2) of x (2, 3, 4)", answers.into_heads(x, 2), right, {
        "a view is taken without exchanging tokens and heads": x.view(2, 2, 3, 2),
        "neighbouring columns go to different heads": torch.stack([x[:, :, ::2], x[:, :, 1::2]], dim=1),
        "tokens and heads are not exchanged": x.view(2, 3, 2, 2)})


def test_pre_norm_block(answers):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=True)
    for norm in (layer.norm1, layer.norm2):  # the norm's scale and shift are 1 and 0 to begin with, which would hide them
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    x = torch.randn(1, 3, 8)

    def attention(x):
        return layer.self_attn(x, x, x, need_weights=False)[0]

    def feed_forward(x):
        return layer.linear2(layer.linear1(x).relu())

    first, second = x + attention(layer.norm1(x)), x + feed_forward(layer.norm2(x))
    normed = layer.norm1(x + attention(x))
    check("pre_norm_block(x, ...) of x (1, 3, 8)",
          answers.pre_norm_block(x, layer.norm1, attention, layer.norm2, feed_forward), layer(x), {
              "the norm follows the addition (post-norm)": layer.norm2(normed + feed_forward(normed)),
              "the residual connections are missing": feed_forward(layer.norm2(attention(layer.norm1(x)))),
              "both branches read the block's input": first + second - x,
              "the feed-forward branch has no norm": first + feed_forward(first),
              "the residual stream itself is normalised before the second branch":
                  layer.norm2(first) + feed_forward(layer.norm2(first))})
