"""Lesson 7.3: the losses on pairs, against torch's own, numbers worked by hand and gradients in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from part_7.losses import LOSSES, bradley_terry_loss, margin_ranking_loss

NAMES = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def draw(n=50, seed=0):
    """Chosen and rejected rewards in fp64, (n,) each, that record gradients."""
    generator = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(n, generator=generator, dtype=torch.float64)).requires_grad_() for _ in range(2)]


def rewards(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_equal_rewards_cost_ln_2_whatever_they_are_and_however_labels_are_smoothed():
    same = rewards(-7.0, 0.0, 0.3, 1000.0)
    for smoothing in (0.0, 0.1, 0.5):
        loss = bradley_terry_loss(same, same, label_smoothing=smoothing)
        assert loss.item() == pytest.approx(math.log(2), abs=1e-12)


@pytest.mark.parametrize("difference, margin, smoothing, expected", [
    (math.log(3), 0.0, 0.0, 0.2876820724517809),  # sigmoid(ln 3) = 3/4: ln(4/3)
    (-math.log(3), 0.0, 0.0, 1.3862943611198906),  # 1/4: ln 4
    (math.log(3), 0.0, 0.25, 0.5623351446188083),  # 3/4 ln(4/3) + 1/4 ln 4
    (1 + math.log(3), 1.0, 0.0, 0.2876820724517809),  # ahead by 1 more than before
    (1.0, 1.0, 0.0, 0.6931471805599453)])  # exactly the margin ahead
def test_bradley_terry_is_what_is_worked_out_by_hand(difference, margin, smoothing, expected):
    loss = bradley_terry_loss(rewards(5 + difference), rewards(5.0), margin, smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("difference, margin, expected", [
    (0.0, 1.0, 1.0), (0.75, 1.0, 0.25), (1.0, 1.0, 0.0), (3.0, 1.0, 0.0), (-2.0, 1.0, 3.0), (-2.0, 0.0, 2.0),
    (1.0, 0.0, 0.0)])
def test_the_ranking_loss_is_what_is_missing_to_the_margin(difference, margin, expected):
    assert margin_ranking_loss(rewards(5 + difference), rewards(5.0), margin).item() == expected


def test_the_ranking_loss_asks_for_a_lead_of_one_and_bradley_terry_for_none_unless_told():
    assert margin_ranking_loss(rewards(0.5), rewards(0.0)).item() == 0.5
    assert bradley_terry_loss(rewards(0.5), rewards(0.0)).item() == pytest.approx(math.log(1 + math.exp(-0.5)), abs=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_bradley_terry_is_torch_s_cross_entropy_of_a_coin_with_soft_targets(smoothing):
    (chosen, rejected), targets = draw(), torch.full((50,), 1 - smoothing, dtype=torch.float64)
    expected = F.binary_cross_entropy_with_logits(chosen - rejected, targets)
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, 0.0, smoothing), expected)


def test_a_label_that_is_taken_for_wrong_asks_for_the_margin_the_other_way_round():
    chosen, rejected = draw()
    right, wrong = (bradley_terry_loss(*pair, 0.7) for pair in ((chosen, rejected), (rejected, chosen)))
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected, 0.7, 0.2), 0.8 * right + 0.2 * wrong)


@pytest.mark.parametrize("margin", [0.0, 1.0, 2.5])
def test_the_ranking_loss_is_torch_s_own(margin):
    chosen, rejected = draw()
    expected = F.margin_ranking_loss(chosen, rejected, torch.ones(50, dtype=torch.float64), margin=margin)
    torch.testing.assert_close(margin_ranking_loss(chosen, rejected, margin), expected)


@pytest.mark.parametrize("margin, smoothing", [(0.0, 0.0), (1.0, 0.0), (0.0, 0.1), (-0.5, 0.3)])
def test_the_gradients_of_bradley_terry_are_the_closed_form(margin, smoothing):
    chosen, rejected = draw()
    of_chosen, of_rejected = torch.autograd.grad(bradley_terry_loss(chosen, rejected, margin, smoothing), (chosen, rejected))
    lead = (chosen - rejected).detach()
    expected = -(1 - smoothing) / (1 + (lead - margin).exp()) + smoothing / (1 + (-lead - margin).exp())
    expected = expected / 50  # the mean is over 50 pairs
    torch.testing.assert_close(of_chosen, expected)
    torch.testing.assert_close(of_rejected, -expected)


def test_at_zero_difference_the_gradient_is_a_half_and_smoothing_shrinks_it():
    for smoothing, expected in ((0.0, -0.5), (0.1, -0.4), (0.5, 0.0)):  # -(1 - e)/2 + e/2
        chosen = torch.zeros(1, requires_grad=True)
        bradley_terry_loss(chosen, torch.zeros(1), label_smoothing=smoothing).backward()
        assert chosen.grad.item() == pytest.approx(expected, abs=1e-7)


def test_pairs_that_are_ahead_by_the_margin_have_no_gradient_and_the_others_all_the_same():
    chosen, rejected = rewards(2.0, 0.9, -4.0, 1.1).requires_grad_(), torch.zeros(4, dtype=torch.float64, requires_grad=True)
    margin_ranking_loss(chosen, rejected).backward()
    assert chosen.grad.tolist() == [0.0, -0.25, -0.25, 0.0] and rejected.grad.tolist() == [0.0, 0.25, 0.25, 0.0]


@pytest.mark.parametrize("loss, options", [
    (bradley_terry_loss, {}), (bradley_terry_loss, dict(margin=1.0, label_smoothing=0.2, centring=0.3)),
    (margin_ranking_loss, {}), (margin_ranking_loss, dict(margin=0.4, centring=0.3))])
def test_the_gradients_are_those_of_finite_differences(loss, options):
    assert torch.autograd.gradcheck(lambda chosen, rejected: loss(chosen, rejected, **options), draw(20, seed=1))


@NAMES
def test_each_pair_may_have_a_margin_of_its_own(loss):
    chosen, rejected = (values.detach() for values in draw(4))
    margins = rewards(0.0, 0.5, 1.0, 3.0)
    alone = [loss(chosen[i:i + 1], rejected[i:i + 1], margin.item()).item() for i, margin in enumerate(margins)]
    assert loss(chosen, rejected, margins).item() == pytest.approx(sum(alone) / 4, rel=1e-12)


@NAMES
def test_a_larger_margin_is_as_if_the_rejected_answer_were_better_by_it(loss):
    chosen, rejected = draw()
    torch.testing.assert_close(loss(chosen, rejected, 1.5), loss(chosen, rejected + 1.5, 0.0))


@NAMES
def test_centring_adds_the_squared_sum_and_pulls_both_rewards_to_opposite_values(loss):
    chosen, rejected = draw()
    plain, centred = loss(chosen, rejected), loss(chosen, rejected, centring=0.01)
    total = (chosen + rejected).detach()
    torch.testing.assert_close(centred - plain, 0.01 * (total**2).mean())
    for values in (chosen, rejected):  # 2 weight (r_c + r_r), on either side the same
        [gradient] = torch.autograd.grad(centred - plain, values, retain_graph=True)
        torch.testing.assert_close(gradient, 2 * 0.01 * total / 50)
    opposite = draw()[0].detach()
    assert loss(opposite, -opposite, centring=1.0) == loss(opposite, -opposite)


@given(st.floats(-100, 100), st.sampled_from(list(LOSSES.values())))
def test_only_differences_count(shift, loss):
    chosen, rejected = (values.detach() for values in draw())
    torch.testing.assert_close(loss(chosen + shift, rejected + shift), loss(chosen, rejected))


def test_centring_is_what_gives_rewards_a_level():
    chosen, rejected = draw()
    low, high = (bradley_terry_loss(chosen + shift, rejected + shift, centring=0.1).item() for shift in (0, 3))
    total = (chosen + rejected).detach()
    assert high - low == pytest.approx(0.1 * ((total + 6)**2 - total**2).mean().item()) and high > low + 1


@given(st.floats(-30, 30), st.floats(0.01, 5), st.floats(0, 2))
def test_further_ahead_never_costs_more(difference, more, margin):
    for loss in LOSSES.values():
        near, far = (loss(rewards(lead), rewards(0.0), margin).item() for lead in (difference, difference + more))
        assert far <= near
        assert far < near or loss is margin_ranking_loss and difference >= margin


@NAMES
@pytest.mark.parametrize("difference", [1e4, -1e4])
def test_extreme_differences_give_a_finite_loss_and_gradient(loss, difference):
    chosen = torch.tensor([difference], requires_grad=True)  # fp32: exp(1e4) is far outside its range
    value = loss(chosen, torch.zeros(1))
    value.backward()
    assert value.item() == pytest.approx(max(0.0, -difference), abs=1.0)  # on the wrong side as steep as the difference
    assert chosen.grad.item() == (-1.0 if difference < 0 else 0.0)


def test_with_smoothing_the_best_difference_is_finite():
    # (1 - e) sigmoid(-d) = e sigmoid(d) at d = ln((1 - e) / e): ln 9 for e = 0.1; too sure is punished beyond it.
    difference = rewards(math.log(9)).requires_grad_()
    bradley_terry_loss(difference, rewards(0.0), label_smoothing=0.1).backward()
    assert difference.grad.item() == pytest.approx(0.0, abs=1e-12)
    sure = [bradley_terry_loss(rewards(d), rewards(0.0), label_smoothing=0.1).item() for d in (math.log(9), 5.0, 1e4)]
    assert sure == sorted(sure) and sure[2] == pytest.approx(0.1 * 1e4)


@NAMES
def test_the_loss_is_a_scalar_the_mean_over_pairs(loss):
    chosen, rejected = draw(3)
    alone = [loss(chosen[i:i + 1], rejected[i:i + 1]) for i in range(3)]
    whole = loss(chosen, rejected)
    assert whole.shape == ()
    torch.testing.assert_close(whole, torch.stack(alone).mean())


def test_the_names_on_the_command_line_are_these_losses():
    assert LOSSES == {"bradley_terry": bradley_terry_loss, "margin_ranking": margin_ranking_loss}
