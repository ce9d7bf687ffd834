"""Lesson 9.4: the estimators of a divergence, by summing over all that can be drawn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_8.toy_language import TablePolicy, ToyLanguage
from part_9.kl import ESTIMATORS, kl_estimates

LOGS = st.floats(-8, 0)


def world(seed=0, n=6, scale=1.0):
    """Logits of a policy, which record gradients, of an older one and of a reference: three (n,), and nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    logits, old, ref = (scale * torch.randn(n, generator=generator, dtype=torch.float64) for _ in range(3))
    return logits.requires_grad_(), old.log_softmax(-1), ref.log_softmax(-1)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits)[0]


def forward_gradient(logits, ref):
    """grad KL(pi || ref) in closed form: pi (d - KL), d = log pi - log ref."""
    p = logits.detach().softmax(-1)
    difference = p.log() - ref
    return p * (difference - p @ difference)


def backward_gradient(logits, ref):
    """grad KL(ref || pi) in closed form: pi - ref."""
    return logits.detach().softmax(-1) - ref.exp()


@pytest.mark.parametrize("difference, k1, k2, k3", [
    (0.0, 0.0, 0.0, 0.0),
    (math.log(2), 0.693147, 0.240227, 0.193147),  # 1/2 - 1 + 0.693147
    (-math.log(2), -0.693147, 0.240227, 0.306853),  # 2 - 1 - 0.693147
    (1.0, 1.0, 0.5, 0.367879), (-1.0, -1.0, 0.5, 0.718282)])  # 1/e - 1 + 1; e - 1 - 1
def test_the_estimates_are_what_is_worked_out_by_hand(difference, k1, k2, k3):
    new, ref = torch.tensor([difference - 2.0], dtype=torch.float64), torch.tensor([-2.0], dtype=torch.float64)
    for estimator, expected in zip(("k1", "k2", "k3"), (k1, k2, k3)):
        assert kl_estimates(new, ref, estimator).item() == pytest.approx(expected, abs=1e-6)
        # drawn when the token was half as probable: rho = 2
        assert kl_estimates(new, ref, estimator, new - math.log(2)).item() == pytest.approx(2 * expected, abs=1e-6)
    assert kl_estimates(new, ref).item() == pytest.approx(k3, abs=1e-6)  # the default
    assert ESTIMATORS == ("k1", "k2", "k3")


@given(st.lists(st.tuples(LOGS, LOGS, LOGS), min_size=1, max_size=20))
def test_k2_and_k3_are_never_negative_weighted_or_not_and_zero_only_where_both_agree(logs):
    new, ref, old = (torch.tensor(column, dtype=torch.float64) for column in zip(*logs))
    for estimator in ("k2", "k3"):
        for drawn in (None, old):
            estimates = kl_estimates(new, ref, estimator, drawn)
            assert (estimates >= -1e-15).all()
            assert (estimates[(new - ref).abs() > 1e-3] > 1e-12).all()
            assert (kl_estimates(new, new, estimator, drawn) == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_on_the_policy_s_own_samples_k1_and_k3_have_the_divergence_as_their_mean_and_k2_has_not(seed):
    logits, _, ref = world(seed)
    new = logits.detach().log_softmax(-1)
    kl = torch.nn.functional.kl_div(ref, new, log_target=True, reduction="sum").item()  # sum pi (log pi - log ref)
    means = {estimator: (new.exp() @ kl_estimates(new, ref, estimator)).item() for estimator in ESTIMATORS}
    assert means["k1"] == pytest.approx(kl, rel=1e-12) and means["k3"] == pytest.approx(kl, rel=1e-12)
    assert means["k2"] == pytest.approx((new.exp() @ (new - ref) ** 2 / 2).item(), rel=1e-12)
    assert abs(means["k2"] / kl - 1) > 0.01


@pytest.mark.parametrize("seed", range(4))
def test_on_an_older_policy_s_samples_only_the_weighted_forms_have_the_divergence_as_their_mean(seed):
    logits, old, ref = world(seed)
    new = logits.detach().log_softmax(-1)
    kl = torch.nn.functional.kl_div(ref, new, log_target=True, reduction="sum").item()
    for estimator in ("k1", "k3"):
        assert (old.exp() @ kl_estimates(new, ref, estimator, old)).item() == pytest.approx(kl, rel=1e-12)
        assert abs((old.exp() @ kl_estimates(new, ref, estimator)).item() / kl - 1) > 0.01


def spread(p, x):
    return math.sqrt((p @ (x - p @ x) ** 2).item())


def test_near_the_reference_k3_varies_as_little_as_k2_and_far_less_than_k1():
    logits, _, ref = world(0)
    new = (ref + 0.02 * logits.detach()).log_softmax(-1)
    k1, k2, k3 = (spread(new.exp(), kl_estimates(new, ref, estimator)) for estimator in ESTIMATORS)
    assert k3 < k1 / 20 and k3 == pytest.approx(k2, rel=0.05)


def test_where_the_policy_hardly_gives_what_the_reference_gives_k3_varies_more_than_k1():
    # pi = (1 - e, e), ref = (1/2, 1/2): k3 of the rare one is about 1 / (2 e), its square times e grows as 1 / (4 e)
    p, ref = torch.tensor([1 - 1e-4, 1e-4], dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64).log()
    k1, k3 = (spread(p, kl_estimates(p.log(), ref, estimator)) for estimator in ("k1", "k3"))
    assert k3 == pytest.approx(math.sqrt(1 / 4e-4), rel=0.01) and k1 < 0.1


@pytest.mark.parametrize("seed", range(4))
class TestExpectedGradients:
    """sum_a pi(a) grad estimate(a), pi's own samples drawn: what descent follows on average."""

    def expected(self, logits, ref, estimator, old=None, p=None):
        new = logits.log_softmax(-1)
        p = new.detach().exp() if p is None else p
        return gradient(p @ kl_estimates(new, ref, estimator, old), logits)

    def test_k1_s_is_zero_though_hardly_one_sample_s_is(self, seed):
        logits, _, ref = world(seed)
        assert self.expected(logits, ref, "k1").abs().max() < 1e-15
        one = torch.zeros(6, dtype=torch.float64).scatter(0, torch.tensor(0), 1.0)
        assert self.expected(logits, ref, "k1", p=one).norm() > 0.1

    def test_k2_s_is_that_of_the_divergence_from_the_reference(self, seed):
        logits, _, ref = world(seed)
        torch.testing.assert_close(self.expected(logits, ref, "k2"), forward_gradient(logits, ref))

    def test_k3_s_is_that_of_the_divergence_the_other_way_round(self, seed):
        logits, _, ref = world(seed)
        found = self.expected(logits, ref, "k3")
        torch.testing.assert_close(found, backward_gradient(logits, ref))
        assert (found - forward_gradient(logits, ref)).norm() > 0.1 * found.norm()

    @pytest.mark.parametrize("estimator", ["k1", "k3"])
    def test_the_weighted_forms_are_that_of_the_divergence_from_the_reference(self, seed, estimator):
        logits, old, ref = world(seed)
        exact = forward_gradient(logits, ref)
        own = logits.detach().log_softmax(-1)
        torch.testing.assert_close(self.expected(logits, ref, estimator, own), exact)
        torch.testing.assert_close(self.expected(logits, ref, estimator, old, old.exp()), exact)  # drawn from an older one
        assert (self.expected(logits, ref, estimator, None, old.exp()) - exact).norm() > 0.1 * exact.norm()

    def test_the_weighted_k2_s_is_not(self, seed):
        logits, _, ref = world(seed)
        exact = forward_gradient(logits, ref)
        assert (self.expected(logits, ref, "k2", logits.detach().log_softmax(-1)) - exact).norm() > 0.05 * exact.norm()


def test_on_the_policy_s_own_samples_k2_and_weighted_k3_have_one_gradient_sample_by_sample():
    logits, _, ref = world(2)
    own = logits.detach().log_softmax(-1)
    for action in range(6):
        k2, k3 = (gradient(kl_estimates(logits.log_softmax(-1), ref, *how)[action], logits)
                  for how in (("k2",), ("k3", own)))
        torch.testing.assert_close(k2, k3)
        assert k2.norm() > 0.01


def test_summed_over_an_answer_k1_is_the_divergence_of_answers_and_its_tokens_gradients_leave_the_future_out():
    language = ToyLanguage(3, 2)
    policy, reference = TablePolicy(language, 1).double(), TablePolicy(language, 2).double()
    rows, home = torch.arange(len(language.sequences)), reference.probabilities().detach()
    p = policy.probabilities()
    (new, _), (ref, _) = policy(rows), reference(rows)
    exact = (p * (p / home).log()).sum()
    summed = torch.where(language.mask, kl_estimates(new, ref.detach(), "k1"), 0.0).sum(1)
    assert (p @ summed).item() == pytest.approx(exact.item(), rel=1e-12)
    # token by token, the weighted gradient is that of each state's divergence, the states' chances held fixed ...
    weighted = torch.where(language.mask, kl_estimates(new, ref.detach(), "k1", new.detach()), 0.0).sum(1)
    found = gradient(p.detach() @ weighted, policy.logits)
    logs, home_logs = policy.logits.log_softmax(-1), reference.logits.log_softmax(-1).detach()
    reached = torch.tensor([1.0, *logs[0, :2].exp().tolist()], dtype=torch.float64)  # the empty prefix, a, b
    torch.testing.assert_close(found, gradient(reached @ (logs.exp() * (logs - home_logs)).sum(1), policy.logits))
    # ... and so not all of that of the answers' divergence: the first token's part does not know what divergence follows
    [whole] = torch.autograd.grad((policy.probabilities() * (policy.probabilities() / home).log()).sum(), policy.logits)
    torch.testing.assert_close(found[1:], whole[1:])
    assert (found[0] - whole[0]).norm() > 0.1 * whole[0].norm()


def test_the_shape_is_kept_and_another_estimator_refused():
    logs = torch.zeros(2, 3, 4)
    for estimator in ESTIMATORS:
        assert kl_estimates(logs, logs, estimator).shape == kl_estimates(logs, logs, estimator, logs).shape == (2, 3, 4)
    for other in ("k4", "K1", ""):
        with pytest.raises(ValueError, match=f"one of k1, k2, k3, not {other}"):
            kl_estimates(logs, logs, other)
