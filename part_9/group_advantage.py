"""Lesson 9.1 - the group's baseline: an answer is as good as it is better than the others to the same prompt.

    A_i = r_i - mean(r_1 ... r_G)                 or, divided by the group's spread,  A_i / (std(r_1 ... r_G) + eps)

(Shao et al. 2024, "DeepSeekMath", section 4.1.2.) No critic is needed: G answers to one prompt are their own yardstick. The
mean contains r_i itself, so the gradient is (G - 1) / G of that with the mean of the others as the baseline, in expectation:
it points the same way, and beta counts G / (G - 1) times beside it. Divided by the spread, all groups' advantages have a
mean square of 1: prompts that are nearly always or nearly never answered rightly count more than without (Liu et al. 2025,
"Understanding R1-Zero-Like Training", section 3.1, leave it out for that).
"""

import torch

EPS = 1e-4  # added to the spread, which is over G, not G - 1, rewards


def group_advantages(rewards, G, normalise=True):
    """Advantages of answers, (B,); each holds for all tokens of its answer. Equal rewards in a group give exactly 0.

    rewards: (B,), the `G` answers to a prompt side by side; normalise: divide by the group's spread. ValueError for groups
    of one, whose advantage would always be 0, or a B that is no multiple of G.
    """
    groups = as_groups(rewards, G)
    centred = groups - groups.mean(1, keepdim=True)
    if normalise:
        centred = centred / (groups.std(1, keepdim=True, correction=0) + EPS)
    return torch.where(has_spread(rewards, G)[:, None], centred, 0.0).flatten()  # the mean of equals may be rounded


def has_spread(rewards, G):
    """Whether the rewards in each group differ: (B / G,) bool. A group of equal rewards teaches nothing."""
    groups = as_groups(rewards, G)
    return groups.amax(1) > groups.amin(1)


def as_groups(rewards, G):
    """(B,) as (B / G, G). ValueError as of `group_advantages`."""
    if G < 2:
        raise ValueError(f"a group needs at least 2 answers, not {G}: the mean of one is the answer's own reward")
    if len(rewards) % G:
        raise ValueError(f"{len(rewards)} rewards are no groups of {G}")
    return rewards.view(-1, G)
