"""Lesson 5.3 - which token goes where: what an expert gets, and how much the token alone tells about its expert.

    lift(class, expert) = P(expert | class) / P(expert)              1: the class does not matter
    I(X; expert) = sum p(x, e) ln( p(x, e) / (p(x) p(e)) )           nats; at most the entropy of the experts

    share explained = (I(X; expert) - c) / (H(expert) - c)          0 by chance, 1 if the expert is a function of X

An estimate from counts is too high, the more so the more values X has; c is what is left of it when X is shuffled (adjusted
mutual information: Vinh et al. 2010).
"""

import math
import string

import torch

from part_5.hybrid import moe_layers

CLASSES = ("newline, blanks", "digit", "punctuation", "capital", "word with blank", "rest of a word")


def token_class(text):
    """The number in CLASSES of a token's text (bytes); pieces of a character of several bytes count as rest of a word."""
    text = text.decode("utf-8", errors="replace")
    bare = text.strip()
    if not bare:
        return 0
    if bare[0].isdigit():
        return 1
    if bare[0] in string.punctuation:
        return 2
    if bare[0].isupper():
        return 3
    return 4 if text[0].isspace() else 5


@torch.inference_mode()
def first_choices(model, windows):
    """The best expert of each token in every MoE layer: windows (B, T) int64 to (layers, B, T). The model stays as it is."""
    was_training = model.training
    model.eval()
    chosen = []
    hooks = [layer.router.register_forward_hook(lambda module, inputs, routing: chosen.append(routing.experts[:, 0]))
             for layer in moe_layers(model)]
    model(windows)
    for hook in hooks:
        hook.remove()
    model.train(was_training)
    return torch.stack([experts.view(windows.shape) for experts in chosen])


def counts_of_pairs(x, y, n_x, n_y):
    """How often each pair occurs: x, y (N,) int64 to (n_x, n_y)."""
    return (x * n_y + y).bincount(minlength=n_x * n_y).view(n_x, n_y)


def lift(classes, experts, n_class, n_expert):
    """P(expert | class) / P(expert) of (N,) classes and experts: (n_class, n_expert); nan where one of them never occurs."""
    joint = counts_of_pairs(classes, experts, n_class, n_expert).double()
    return joint * joint.sum() / (joint.sum(dim=1, keepdim=True) * joint.sum(dim=0))


def mutual_information(x, y):
    """I(X; Y) in nats of two (N,) int64 tensors of numbers from 0; of a tensor with itself it is the entropy."""
    joint = counts_of_pairs(x, y, int(x.max()) + 1, int(y.max()) + 1).double() / len(x)
    independent = joint.sum(dim=1, keepdim=True) * joint.sum(dim=0)
    return torch.special.xlogy(joint, joint / independent.clamp(min=1e-300)).sum().item()


def share_explained(x, y, generator):
    """How much of the choice y the values x explain: 0 by chance, 1 if y is a function of x, nan if there is no choice."""
    chance, entropy = mutual_information(x[torch.randperm(len(x), generator=generator)], y), mutual_information(y, y)
    return (mutual_information(x, y) - chance) / (entropy - chance) if entropy else math.nan
