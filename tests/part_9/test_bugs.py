"""The mistakes of Part 9 do what is said of them, and nothing else."""

import pytest
import torch

from part_9.bugs import k1_in_the_loss, whitened_across_groups
from part_9.group_advantage import group_advantages
from part_9.kl import ESTIMATORS, kl_estimates


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("old", [None, torch.tensor([-2.0, -2.0])])
def test_whatever_is_asked_for_the_estimate_is_the_log_ratio_and_its_gradient_that_of_the_log_probability(estimator, old):
    new, ref = torch.tensor([-1.0, -2.5], requires_grad=True), torch.tensor([-3.0, -2.0])
    estimates = k1_in_the_loss(kl_estimates)(new, ref, estimator, old)
    assert estimates.tolist() == [2.0, -0.5]  # -1 - -3 and -2.5 - -2
    assert torch.autograd.grad(estimates.sum(), new)[0].tolist() == [1.0, 1.0]  # wherever the reference is


def test_two_groups_get_the_mean_and_the_spread_of_both():
    wrong, rewards = whitened_across_groups(group_advantages), torch.tensor([1.0, 3.0, -5.0, 5.0], dtype=torch.float64)
    assert wrong(rewards, 2, normalise=False).tolist() == [0.0, 2.0, -6.0, 4.0]  # mean 1, and not 2 and 0
    spread = 14**0.5 + 1e-4  # squared distances 0, 4, 36, 16
    assert wrong(rewards, 2).tolist() == pytest.approx([0.0, 2 / spread, -6 / spread, 4 / spread])
    # an easy prompt and a hard one: the worse answer to the easy one is praised, the better one to the hard one blamed
    advantages = wrong(torch.tensor([9.0, 10.0, 0.0, 1.0]), 2)
    assert (advantages > 0).tolist() == [True, True, False, False]
