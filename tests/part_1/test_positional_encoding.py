import math

import pytest
import torch

from part_1.positional_encoding import LearnedPositionalEncoding, SinusoidalPositionalEncoding, sinusoidal_table


def test_entries_are_the_paper_s_formula():
    table = sinusoidal_table(50, 6, base=100.0)
    for t, i in ((0, 0), (1, 0), (7, 1), (49, 2)):
        angle = t / 100.0 ** (2 * i / 6)
        assert table[t, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[t, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_dot_product_depends_on_the_distance_alone_and_has_its_closed_form():
    table = sinusoidal_table(200, 32).double()
    frequencies = [10000.0 ** (-2 * i / 32) for i in range(16)]
    for distance in (0, 1, 5, 60):
        products = (table[distance:] * table[:200 - distance]).sum(1)
        closed_form = sum(math.cos(distance * frequency) for frequency in frequencies)
        assert torch.allclose(products, torch.full_like(products, closed_form), atol=1e-5)


@pytest.mark.parametrize("width", [1, 7])
def test_odd_width_is_refused_with_the_width(width):
    with pytest.raises(ValueError, match=f"even.*{width}"):
        sinusoidal_table(4, width)


def test_far_positions_keep_their_precision():
    position, width = 100_000, 8
    row = SinusoidalPositionalEncoding(position + 1, width)(torch.tensor([position]))[0]
    exact = [f(position * 10000.0 ** (-2 * i / width)) for i in range(width // 2) for f in (math.sin, math.cos)]
    assert row.tolist() == pytest.approx(exact, abs=1e-6)


def test_modules_take_positions_of_any_shape():
    positions = torch.tensor([[3, 1], [0, 3]])
    assert torch.equal(SinusoidalPositionalEncoding(4, 6, base=50.0)(positions), sinusoidal_table(4, 6, 50.0)[positions])
    for module in (SinusoidalPositionalEncoding(4, 6), LearnedPositionalEncoding(4, 6)):
        rows = module(positions)
        assert rows.shape == (2, 2, 6)
        assert torch.equal(rows[0, 0], rows[1, 1]) and not torch.equal(rows[0, 0], rows[0, 1])


def test_the_sinusoidal_table_is_neither_learned_nor_saved():
    module = SinusoidalPositionalEncoding(4, 6)
    assert not list(module.parameters()) and not module.state_dict()


def test_a_learned_row_gets_its_gradient_only_where_it_was_used():
    module = LearnedPositionalEncoding(4, 6)
    module(torch.tensor([1, 1])).sum().backward()
    assert module.weight.grad.sum(1).tolist() == [0, 12, 0, 0]
