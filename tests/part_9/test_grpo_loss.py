"""Lesson 9.3: GRPO's objective, against numbers worked by hand, PPO's surrogate and the best policy of a small language."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_8.ppo_loss import clipped_surrogate
from part_8.toy_language import TablePolicy, ToyLanguage, optimum, total_variation
from part_9.group_advantage import group_advantages
from part_9.grpo_loss import AGGREGATIONS, grpo_losses, overlong_penalty, token_weights
from part_9.kl import ESTIMATORS


def masks(*rows):
    """Rows as texts, x for a token of the answer."""
    return torch.tensor([[place == "x" for place in row] for row in rows])


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("how, expected", [
    ("sequence", [[1 / 2, 0, 0, 0], [1 / 6, 1 / 6, 1 / 6, 0]]),  # half a batch each, in one part and in three
    ("token", [[1 / 4, 0, 0, 0], [1 / 4, 1 / 4, 1 / 4, 0]]),  # four tokens
    ("constant", [[1 / 10, 0, 0, 0], [1 / 10, 1 / 10, 1 / 10, 0]])])  # two answers of at most five tokens
def test_the_weights_of_a_short_and_a_long_answer_are_what_is_worked_out_by_hand(how, expected):
    weights = token_weights(masks("x...", "xxx."), how, 5)
    torch.testing.assert_close(weights, torch.tensor(expected))
    assert weights.dtype == torch.float32


def test_the_three_names():
    assert AGGREGATIONS == ("sequence", "token", "constant")
    with pytest.raises(ValueError, match="one of sequence, token, constant, not mean"):
        token_weights(masks("x"), "mean", 5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_what_the_weights_add_up_to(lengths):
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    sums = {how: token_weights(mask, how, 9).double() for how in AGGREGATIONS}
    assert sums["sequence"].sum().item() == pytest.approx(1, abs=1e-6)
    assert sums["sequence"].sum(1).tolist() == pytest.approx([1 / len(lengths)] * len(lengths), abs=1e-6)
    assert sums["token"].sum().item() == pytest.approx(1, abs=1e-6)
    assert sums["constant"].sum().item() == pytest.approx(sum(lengths) / len(lengths) / 9, abs=1e-6)
    for weights in sums.values():
        assert (weights[~mask] == 0).all() and (weights[mask] > 0).all()


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_weighted_mean_is_the_mean_written_out(how):
    losses = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = masks(".xx...", "..xxxx", ".x....")
    rows = [row[own].tolist() for row, own in zip(losses, mask)]
    expected = {"sequence": sum(sum(row) / len(row) for row in rows) / 3, "token": sum(map(sum, rows)) / 7,
                "constant": sum(map(sum, rows)) / (3 * 10)}[how]
    assert (losses * token_weights(mask, how, 10)).sum().item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_neither_prompt_nor_padding_changes_a_weight(how):
    short = token_weights(masks("x..", "xxx"), how, 4)
    padded = token_weights(masks("..x.....", "..xxx..."), how, 4)
    torch.testing.assert_close(padded[:, 2:5], short)
    assert padded[:, :2].sum() == 0 and padded[:, 5:].sum() == 0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_rows_left_out_weigh_nothing_and_the_others_as_if_they_were_not_there(how):
    alone = token_weights(masks("x..", "xxx"), how, 4)
    with_others = token_weights(masks("...", "x..", "...", "xxx", "..."), how, 4)
    torch.testing.assert_close(with_others[[1, 3]], alone)
    assert with_others[[0, 2, 4]].sum() == 0


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_batch_of_which_all_is_left_out_has_weights_of_zero(how):
    assert token_weights(masks("...", "..."), how, 4).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("how", AGGREGATIONS)
@given(order=st.permutations(range(4)))
def test_reordering_answers_reorders_their_weights(how, order):
    mask = masks("x...", ".xxx", "xxxx", "....")
    torch.testing.assert_close(token_weights(mask[order], how, 7), token_weights(mask, how, 7)[order], rtol=0, atol=0)


def draw(n=4, t=6, seed=0):
    """new, which records gradients, old, ref: (n, t); advantages: (n,)."""
    generator = torch.Generator().manual_seed(seed)
    new, old, ref = (0.3 * torch.randn(n, t, generator=generator, dtype=torch.float64) - 2 for _ in range(3))
    return new.requires_grad_(), old, ref, torch.randn(n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("bounds", [(), (0.3,), (0.1, 0.5)])
def test_without_penalty_it_is_ppo_s_surrogate_with_one_advantage_for_all_tokens_of_an_answer(bounds):
    new, old, ref, advantages = draw()
    losses, clipped = grpo_losses(new, old, ref, advantages, 0.0, "k3", False, *bounds)
    expected, also_clipped = clipped_surrogate(new, old, advantages[:, None].expand(4, 6), *bounds)
    assert losses.tolist() == expected.tolist() and clipped.tolist() == also_clipped.tolist()
    assert 0 < clipped.sum() < clipped.numel()
    if not bounds:
        assert losses.tolist() == grpo_losses(new, old, ref, advantages)[0].tolist()  # so by default


def test_at_beta_zero_a_reference_without_the_token_is_not_looked_at():
    new, old, ref, advantages = draw()
    losses, _ = grpo_losses(new, old, torch.full_like(ref, -math.inf), advantages)
    losses.sum().backward()
    assert losses.isfinite().all() and new.grad.isfinite().all()


@pytest.mark.parametrize("ratio, advantage, clip_high, loss, gradient", [
    (1.3, 2.0, None, -2.4, 0.0),  # has risen enough: min(2.6, 1.2 * 2)
    (0.7, -2.0, None, 1.6, 0.0),  # has fallen enough: min(-1.4, 0.8 * -2)
    (0.7, 2.0, None, -1.4, -1.4),  # fell where it should rise: -A rho
    (1.3, -2.0, None, 2.6, 2.6),  # rose where it should fall
    (1.0, 2.0, None, -2.0, -2.0),
    (1.25, 2.0, 0.28, -2.5, -2.5),  # a higher upper bound leaves room to rise ...
    (1.3, 2.0, 0.28, -2.56, 0.0),  # ... up to 1.28
    (0.7, -2.0, 0.28, 1.6, 0.0)])  # and does not move the lower one
def test_the_gradient_is_zero_in_the_clipped_corners_and_only_there(ratio, advantage, clip_high, loss, gradient):
    new = numbers([math.log(ratio)]).requires_grad_()
    losses, clipped = grpo_losses(new, numbers([0.0]), numbers([0.0]), numbers(advantage), clip_high=clip_high)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, abs=1e-12) and new.grad.item() == pytest.approx(gradient, abs=1e-12)
    assert clipped.tolist() == [[gradient == 0]]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_penalty_is_added_beta_times_and_is_not_clipped(estimator, weighted):
    new, old, ref, advantages = draw(seed=1)
    plain, clipped = grpo_losses(new, old, ref, advantages)
    losses, also_clipped = grpo_losses(new, old, ref, advantages, 0.7, estimator, weighted)
    difference = new - ref
    penalty = {"k1": difference, "k2": difference**2 / 2, "k3": (-difference).exp() - 1 + difference}[estimator]
    if weighted:
        penalty = penalty * (new - old).exp()
    torch.testing.assert_close(losses - plain, 0.7 * penalty)
    assert also_clipped.tolist() == clipped.tolist() and clipped.any()
    [gradient] = torch.autograd.grad(losses.sum(), new)
    assert (gradient[clipped] != 0).all()  # the penalty goes on where the surrogate has stopped


def test_the_worked_penalty_of_one_token():
    # ratio 1, A = 2: -2. d = log 2: k3 = 1/2 - 1 + 0.693147 = 0.193147, of which beta 0.5 takes half
    logs = numbers([-1.0])
    losses, _ = grpo_losses(logs, logs, logs - math.log(2), numbers(2.0), 0.5)
    assert losses.item() == pytest.approx(-2 + 0.0965735, abs=1e-6)


def test_reordering_answers_reorders_their_losses():
    new, old, ref, advantages = draw(seed=2)
    order = [2, 0, 3, 1]
    losses, clipped = grpo_losses(new, old, ref, advantages, 0.3)
    moved, also = grpo_losses(new[order], old[order], ref[order], advantages[order], 0.3)
    assert moved.tolist() == losses[order].tolist() and also.tolist() == clipped[order].tolist()


def test_the_gradient_follows_finite_differences_away_from_its_corners():
    new, old, ref, advantages = draw(seed=3)
    for how in (("k3", False), ("k1", True), ("k2", False)):
        assert torch.autograd.gradcheck(lambda x, how=how: grpo_losses(x, old, ref, advantages, 0.3, *how)[0].sum(), new)


def test_the_penalty_near_the_limit_is_what_is_worked_out_by_hand():
    lengths = torch.tensor([1, 32, 33, 36, 38, 40, 41, 100])  # 0 up to 40 - 8 = 32, then an eighth a token
    assert overlong_penalty(lengths, 40, 8).tolist() == [0.0, 0.0, 0.125, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert overlong_penalty(torch.tensor([9, 10]), 10, 1).tolist() == [0.0, 1.0]
    assert overlong_penalty(torch.tensor([0, 5]), 10, 10).tolist() == [0.0, 0.5]


# The whole objective in a language of 15 answers, where the best policy is known.

LANGUAGE, BETA, G = ToyLanguage(3, 3), 1.0, 16
REWARDS = 1.5 * torch.randn(15, generator=torch.Generator().manual_seed(5))
REFERENCE = TablePolicy(LANGUAGE, 3)
HOME = REFERENCE.probabilities().detach()
EFFECTIVE = BETA * G / (G - 1)  # the group's mean shortens the reward's gradient, and not the penalty's


def learn(estimator, weighted, by_token, G=G, steps=200, batch=192, seed=0):
    """The probabilities that GRPO comes to, on policy, its advantages not normalised: (15,). by_token: the penalty of each
    token; else an answer is one choice, with the log-probability of the whole of it."""
    policy, generator = TablePolicy(LANGUAGE), torch.Generator().manual_seed(seed)
    policy.load_state_dict(REFERENCE.state_dict())
    optimizer = torch.optim.Adam(policy.parameters())
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / steps)
        rows = torch.multinomial(policy.probabilities().detach(), batch, replacement=True, generator=generator)
        mask, new, ref = LANGUAGE.mask[rows], policy(rows)[0], REFERENCE(rows)[0].detach()
        if not by_token:
            new, ref = (torch.where(mask, x, 0.0).sum(1, keepdim=True) for x in (new, ref))
            mask = torch.ones(batch, 1, dtype=torch.bool)
        losses, _ = grpo_losses(new, new.detach(), ref, group_advantages(REWARDS[rows], G, False), BETA, estimator, weighted)
        loss = torch.where(mask, losses * token_weights(mask, "constant", 3), 0.0).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.probabilities().detach()


def backward_optimum(beta):
    """The distribution with the highest E[r] - beta KL(ref || pi): r + beta ref / pi is the same, l, for all answers, so
    pi = beta ref / (l - r), with the l above all r at which this adds up to 1."""
    low, high = REWARDS.max().double(), REWARDS.max().double() + beta
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if (beta * HOME.double() / (middle - REWARDS)).sum() > 1 else (low, middle)
    return (beta * HOME.double() / (high - REWARDS)).float()


def short_sighted_optimum(beta):
    """Where a penalty of each token leads that counts a state's own divergence, and no later one: from the last state back,
    pi(a | s) is pi_ref(a | s) exp(Q(s, a) / beta), with Q the expected reward alone."""
    pi, values = {}, dict(zip(LANGUAGE.sequences, REWARDS.tolist()))
    for prefix, logits in reversed(list(zip(LANGUAGE.prefixes, REFERENCE.logits.detach()))):  # the longest first
        worth = torch.tensor([values[(*prefix, token)] for token in range(3)])
        pi[prefix] = (logits.log_softmax(0) + worth / beta).softmax(0)
        values[prefix] = (pi[prefix] @ worth).item()
    chances = [math.prod(pi[answer[:t]][token].item() for t, token in enumerate(answer)) for answer in LANGUAGE.sequences]
    return torch.tensor(chances)


BEST, BACKWARD, SHORT = optimum(HOME, REWARDS, EFFECTIVE), backward_optimum(EFFECTIVE), short_sighted_optimum(EFFECTIVE)


def test_the_three_targets_are_distributions_far_from_each_other_and_from_the_reference():
    for one in (BEST, BACKWARD, SHORT):
        assert one.sum().item() == pytest.approx(1, abs=1e-5) and (one > 0).all()
        assert total_variation(one, HOME) > 0.1
    assert min(total_variation(BEST, BACKWARD), total_variation(BACKWARD, SHORT), total_variation(BEST, SHORT)) > 0.1


@pytest.mark.parametrize("estimator, weighted", [("k1", True), ("k2", False), ("k3", True)])
def test_with_an_estimator_whose_gradient_is_right_it_comes_to_the_best_policy(estimator, weighted):
    found = learn(estimator, weighted, by_token=False)
    assert total_variation(found, BEST) <= 0.05


def test_with_k3_it_comes_to_the_optimum_of_the_other_divergence():
    found = learn("k3", False, by_token=False)
    assert total_variation(found, BACKWARD) <= 0.05 and total_variation(found, BEST) > 0.08


def test_with_k1_nothing_holds_it():
    found = learn("k1", False, by_token=False)
    assert found.argmax() == REWARDS.argmax() and found.max() > 0.95  # as if beta were 0


def test_a_penalty_token_by_token_does_not_see_the_divergence_that_follows():
    found = learn("k2", False, by_token=True)
    assert total_variation(found, SHORT) <= 0.05 and total_variation(found, BEST) > 0.08


def test_in_groups_of_two_beta_counts_twice():
    found = learn("k2", False, by_token=False, G=2)
    assert total_variation(found, optimum(HOME, REWARDS, 2 * BETA)) <= 0.05
    assert total_variation(found, BEST) > 0.1
