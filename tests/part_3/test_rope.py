import math

import pytest
import torch

from part_3.rope import frequencies, half_to_interleaved, interleaved_to_half, ntk_base, rotate, rotation
from tests.part_3.llama_reference import turn

PAIRINGS = pytest.mark.parametrize("pairing", ["half", "interleaved"])


@PAIRINGS
@pytest.mark.parametrize("base", [10000.0, 500000.0])
def test_equals_multiplication_by_complex_numbers(pairing, base):
    torch.manual_seed(0)
    x, positions = torch.randn(2, 3, 5, 8), torch.tensor([0, 1, 7, 40, 300])
    turned = rotate(x, rotation(positions, 8, base, pairing=pairing))
    assert torch.allclose(turned, turn(x, positions, base, pairing), atol=1e-4)


def test_a_quarter_turn_worked_by_hand():
    # D = 4: pair 0 turns by the position itself, pair 1 by 1/100 of it. A quarter turn takes (a, b) to (-b, a).
    x, quarter = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4), torch.tensor([math.pi / 2])
    c, s = math.cos(math.pi / 200), math.sin(math.pi / 200)
    half = rotate(x, rotation(quarter, 4)).flatten()  # pairs (1, 3) and (2, 4)
    assert half.tolist() == pytest.approx([-3, 2 * c - 4 * s, 1, 2 * s + 4 * c], abs=1e-5)
    interleaved = rotate(x, rotation(quarter, 4, pairing="interleaved")).flatten()  # pairs (1, 2) and (3, 4)
    assert interleaved.tolist() == pytest.approx([-2, 1, 3 * c - 4 * s, 3 * s + 4 * c], abs=1e-5)


@PAIRINGS
def test_a_score_depends_on_the_distance_only(pairing):
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 16)

    def score(m, n):
        at_m, at_n = (rotation(torch.tensor([position]), 16, pairing=pairing) for position in (m, n))
        return (rotate(query, at_m) * rotate(key, at_n)).sum().item()

    for m, n, shift in torch.randint(500, (20, 3)).tolist():
        assert score(m + shift, n + shift) == pytest.approx(score(m, n), abs=2e-3)
    assert abs(score(5, 0) - score(0, 5)) > 0.1 and abs(score(5, 0) - score(6, 0)) > 0.1


@PAIRINGS
def test_lengths_are_kept_and_position_0_changes_nothing(pairing):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 8)
    turned = rotate(x, rotation(torch.arange(6), 8, pairing=pairing))
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert (turned[:, :, 1:] - x[:, :, 1:]).abs().amax() > 0.1


def test_frequencies_fall_geometrically_to_almost_1_over_the_base():
    # D = 8: 10000^(-2i/8) = 10^-i. The slowest pair has base^(-6/8): with 160,000 = 20^4 that is 20^-3 = 1/8000.
    assert frequencies(8).tolist() == pytest.approx([1, 0.1, 0.01, 0.001])
    assert frequencies(8, 160000.0)[-1].item() == pytest.approx(1 / 8000)
    # At position 4000 this pair has turned by half a radian, and with base 10,000 by 4.
    assert rotation(torch.tensor([4000]), 8, 160000.0).cos[0, 3].item() == pytest.approx(math.cos(0.5), abs=1e-5)
    assert rotation(torch.tensor([4000]), 8).cos[0, 3].item() == pytest.approx(math.cos(4), abs=1e-5)


@PAIRINGS
def test_scale_interpolates_positions(pairing):
    # Position 8 at scale 4 is position 2, and position 5 at scale 2 lies halfway between 2 and 3.
    torch.manual_seed(0)
    x = torch.randn(1, 2, 2, 8)
    scaled = rotate(x[:, :, :1], rotation(torch.tensor([8]), 8, scale=4.0, pairing=pairing))
    assert torch.allclose(scaled, turn(x[:, :, :1], torch.tensor([2]), pairing=pairing), atol=1e-6)
    between = rotate(x[:, :, :1], rotation(torch.tensor([5]), 8, scale=2.0, pairing=pairing))
    assert torch.allclose(between, turn(x[:, :, :1], torch.tensor([2.5]), pairing=pairing), atol=1e-6)


@pytest.mark.parametrize("d_head, base, scale", [(8, 10000.0, 4.0), (64, 10000.0, 2.0), (128, 500000.0, 8.0)])
def test_ntk_base_slows_the_slowest_pair_by_the_scale_and_the_fastest_not_at_all(d_head, base, scale):
    before, after = frequencies(d_head, base), frequencies(d_head, ntk_base(base, scale, d_head))
    ratios = before / after  # pair i turns scale^(2i / (D - 2)) times slower: 1 for i = 0, scale for i = D/2 - 1
    assert ratios[0] == 1 and ratios[-1].item() == pytest.approx(scale, rel=1e-4)
    assert ratios.tolist() == pytest.approx([scale ** (2 * i / (d_head - 2)) for i in range(d_head // 2)], rel=1e-4)


def test_reordered_weights_give_the_other_pairing_the_same_scores():
    torch.manual_seed(0)
    x, positions = torch.randn(1, 6, 10), torch.tensor([0, 1, 2, 9, 30, 31])
    W_q, W_k, b_q, b_k = torch.randn(3 * 8, 10), torch.randn(3 * 8, 10), torch.randn(3 * 8), torch.randn(3 * 8)

    def scores(weights, pairing):
        W_q, b_q, W_k, b_k = weights
        query, key = ((x @ W.T + b).view(1, 6, 3, 8).transpose(1, 2) for W, b in ((W_q, b_q), (W_k, b_k)))
        query, key = (rotate(part, rotation(positions, 8, pairing=pairing)) for part in (query, key))
        return query @ key.mT

    half = (W_q, b_q, W_k, b_k)
    interleaved = [half_to_interleaved(part, 8) for part in half]
    assert torch.allclose(scores(interleaved, "interleaved"), scores(half, "half"), atol=1e-3)
    assert not torch.allclose(scores(half, "interleaved"), scores(half, "half"), atol=1.0)
    assert all(torch.equal(interleaved_to_half(after, 8), before) for after, before in zip(interleaved, half))


def test_reordering_by_hand():
    # One head of 6: pairs (0, 3), (1, 4), (2, 5) become neighbours. Two heads of 4: each is reordered alone.
    assert half_to_interleaved(torch.arange(6), 6).tolist() == [0, 3, 1, 4, 2, 5]
    assert interleaved_to_half(torch.arange(6), 6).tolist() == [0, 2, 4, 1, 3, 5]
    assert half_to_interleaved(torch.arange(8), 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert half_to_interleaved(torch.arange(8).view(4, 2), 4).tolist() == [[0, 1], [4, 5], [2, 3], [6, 7]]


@PAIRINGS
@pytest.mark.parametrize("autocast", [False, True])
def test_angles_are_fp32_whatever_the_model_computes_in(pairing, autocast):
    # In bf16 257 is 256, and 1001 is 1000. Only the result is rounded, to the bf16 number nearest to the truth.
    torch.manual_seed(0)
    x, positions = torch.randn(4, 8, 3, 16).bfloat16(), torch.tensor([256, 257, 1001])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        by = rotation(positions, 16, pairing=pairing)
        turned = rotate(x, by)
    assert turned.dtype == torch.bfloat16 and by.cos.dtype == by.sin.dtype == torch.float32
    assert (turned != turn(x, positions, pairing=pairing).bfloat16()).double().mean() < 0.02


@PAIRINGS
def test_rows_may_have_positions_of_their_own(pairing):
    torch.manual_seed(0)
    x, positions = torch.randn(3, 2, 4, 8), torch.tensor([[0, 1, 2, 3], [9, 10, 11, 12], [-1, -1, 0, 5]])
    turned = rotate(x, rotation(positions, 8, pairing=pairing))
    for row in range(3):
        assert torch.allclose(turned[row:row + 1], turn(x[row:row + 1], positions[row], pairing=pairing), atol=1e-5)


def test_the_rotation_is_on_the_device_of_the_positions():
    assert {part.device.type for part in rotation(torch.arange(3, device="meta"), 4)[:2]} == {"meta"}


@PAIRINGS
def test_gradients_are_turned_back(pairing):
    # A rotation's transpose is the rotation by the opposite angle.
    torch.manual_seed(0)
    x, grad, positions = torch.randn(1, 2, 4, 8, requires_grad=True), torch.randn(1, 2, 4, 8), torch.tensor([0, 3, 50, 51])
    rotate(x, rotation(positions, 8, pairing=pairing)).backward(grad)
    assert torch.allclose(x.grad, turn(grad, -positions, pairing=pairing), atol=1e-5)
