"""Exercises of Part 1. Replace each `raise`; `python3 -m pytest tests/exercises -k part_1` says whether you are right."""


def causal_weights(query, key):
    """How much does each token look at each other one, and not at those after it?

    query, key: (T, D) tensors of one head. Returns the attention weights (T, T): row i is query i's, sums to 1, and is
    exactly 0 at every key after i. Hint: lessons 1.2 and 1.3; what must stand in a score for its weight to become 0?
    """
    raise NotImplementedError("solve me")


def into_heads(x, n_head):
    """Cut each token's vector into heads.

    x: (B, T, C) with C divisible by n_head. Returns (B, H, T, D): head h of a token is the columns h*D ... (h+1)*D - 1 of
    its vector. Hint: lesson 1.4; a view alone has the right shape and the wrong numbers.
    """
    raise NotImplementedError("solve me")


def pre_norm_block(x, norm_1, attention, norm_2, feed_forward):
    """One Transformer block from its four pieces.

    x: (B, T, C); the other four are functions from (B, T, C) to (B, T, C). Returns (B, T, C). Hint: lesson 1.7; the residual
    stream itself never passes through a norm.
    """
    raise NotImplementedError("solve me")
