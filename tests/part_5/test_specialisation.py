"""Lesson 5.3: which token goes where - against entropies and tables worked by hand."""

import math

import pytest
import torch

from part_5.hybrid import HybridConfig, hybrid_gpt, moe_layers
from part_5.specialisation import (
    CLASSES,
    counts_of_pairs,
    first_choices,
    lift,
    mutual_information,
    share_explained,
    token_class,
)


@pytest.mark.parametrize("text, name", [
    (b"\n", "newline, blanks"), (b"   ", "newline, blanks"), (b"7", "digit"), (b" 42", "digit"), (b"(", "punctuation"),
    (b" _x", "punctuation"), (b"The", "capital"), (b" The", "capital"), (" Äpfel".encode(), "capital"),
    (b" the", "word with blank"), (b"\nthe", "word with blank"), (b"ing", "rest of a word"), (b"\xc3", "rest of a word"),
])
def test_a_token_has_the_class_of_its_first_character(text, name):
    assert CLASSES[token_class(text)] == name


def test_pairs_are_counted():
    assert counts_of_pairs(torch.tensor([0, 1, 1, 1]), torch.tensor([2, 0, 2, 2]), 2, 3).tolist() == [[0, 0, 1], [1, 0, 2]]


def test_lift_is_the_share_of_a_class_over_the_share_of_all():
    # Class 0: 3 tokens, 2 of them to expert 0; class 1: 1 token, to expert 0. P(expert 0) = 3/4, P(expert 1) = 1/4.
    got = lift(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 0]), 2, 2)
    torch.testing.assert_close(got, torch.tensor([[8 / 9, 4 / 3], [4 / 3, 0]], dtype=torch.float64))


def test_lift_of_a_class_that_never_occurs_is_no_number():
    assert lift(torch.tensor([0, 0]), torch.tensor([0, 1]), 2, 2)[1].isnan().all()


def test_information_of_a_copy_is_the_entropy():
    x = torch.tensor([0, 0, 1, 2])  # entropy: 1/2 ln 2 + 2 * 1/4 ln 4 = 1.5 ln 2
    assert mutual_information(x, 2 - x) == pytest.approx(1.5 * math.log(2))


def test_information_of_independent_values_is_zero():
    x, y = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert mutual_information(x, y) == pytest.approx(0, abs=1e-12)


def test_information_of_a_noisy_copy():
    # p(x, y) = 3/8 on the diagonal, 1/8 off it: ln 2 - H(1/4), with H(1/4) = 1/4 ln 4 + 3/4 ln 4/3
    x, y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1, 1, 0])
    assert mutual_information(x, y) == pytest.approx(math.log(2) - math.log(4) / 4 - 0.75 * math.log(4 / 3))


def test_share_explained_is_about_zero_by_chance_though_the_plain_information_is_not():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randint(300, (3000,), generator=generator), torch.randint(8, (3000,), generator=generator)
    assert mutual_information(x, y) > 0.25  # about (300 - 1) (8 - 1) / (2 * 3000) = 0.35 nats of nothing
    assert abs(share_explained(x, y, generator)) < 0.02


def test_share_explained_is_one_for_a_function_and_no_number_where_there_is_no_choice():
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(300, (3000,), generator=generator)
    assert share_explained(x, x % 8, generator) == pytest.approx(1)
    assert math.isnan(share_explained(x, x * 0, generator))


def test_share_explained_of_a_mixture_of_both():
    # y is a function of x for half of the tokens and drawn at random for the others: with 4 even experts the expert given x
    # is right with probability 5/8, the others 1/8 each. I = ln 4 - H(5/8, 1/8, 1/8, 1/8), and chance is next to nothing.
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(8, (40000,), generator=generator)
    y = torch.where(torch.rand(40000, generator=generator) < 0.5, x % 4, torch.randint(4, (40000,), generator=generator))
    entropy = -5 / 8 * math.log(5 / 8) - 3 / 8 * math.log(1 / 8)
    assert share_explained(x, y, generator) == pytest.approx(1 - entropy / math.log(4), abs=0.01)


def test_first_choices_are_each_router_s_best_expert_for_its_tokens():
    torch.manual_seed(0)
    model = hybrid_gpt(HybridConfig(30, 8, 3, 2, 16, first_dense=1, alpha=0.5, noisy=True, n_expert=4))
    windows, seen = torch.randint(30, (2, 8)), []
    model.train()
    for layer in moe_layers(model):
        layer.router.register_forward_pre_hook(
            lambda router, inputs: seen.append((inputs[0] @ router.gate.weight.T).argmax(-1)))
    got = first_choices(model, windows)
    assert model.training and got.shape == (2, 2, 8)
    assert torch.equal(got.flatten(1), torch.stack(seen))
    assert torch.equal(got, first_choices(model, windows))  # no noise
    assert not any(layer.router._forward_hooks for layer in moe_layers(model))
