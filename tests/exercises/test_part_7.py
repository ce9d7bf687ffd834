"""Checks of the exercises of Part 7: one for each function, named for it."""

import itertools
import math

import torch
import torch.nn.functional as F

from part_7.gold_utility import consistency
from tests.exercises.compare import check


def test_best_accuracy(answers):
    # Gaps of ln 3, -ln 3 and 0 at temperature 1: the better one is preferred with probability 3/4, 3/4 and 1/2.
    a, b = torch.tensor([math.log(3), 0.0, 1.0]), torch.tensor([0.0, math.log(3), 1.0])
    check("best_accuracy([ln 3, 0, 1], [0, ln 3, 1], temperature=1)", answers.best_accuracy(a, b, 1.0), 2 / 3,
          {"a, and not the better one, is taken for preferred": 0.5, "every pair is taken for rightly labelled": 1.0,
           "the probabilities are summed up, not averaged": 2.0})
    # At temperature 1/2 the gaps count twice: 9/10, 9/10, 1/2.
    check("best_accuracy([ln 3, 0, 1], [0, ln 3, 1], temperature=0.5)", answers.best_accuracy(a, b, 0.5), 2.3 / 3,
          {"the gap is multiplied by the temperature": (2 * math.sqrt(3) / (1 + math.sqrt(3)) + 0.5) / 3,
           "the temperature is left out": 2 / 3})
    torch.manual_seed(0)
    a, b = torch.randn(20, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    check("best_accuracy of 20 pairs, temperature=0.3", answers.best_accuracy(a, b, 0.3), consistency((a - b).tolist(), 0.3))


def test_bradley_terry_loss(answers):
    # Leads of ln 3 and -ln 3: -log(3/4) and -log(1/4). With a margin of ln 3 for the first: -log(1/2).
    chosen, rejected, none = torch.tensor([math.log(3), 0.0]), torch.tensor([0.0, math.log(3)]), torch.zeros(2)
    check("bradley_terry_loss([ln 3, 0], [0, ln 3], margin=[0, 0])", answers.bradley_terry_loss(chosen, rejected, none),
          (math.log(4 / 3) + math.log(4)) / 2,
          {"the losses are summed up, not averaged": math.log(4 / 3) + math.log(4),
           "the sigmoid's logarithm is missing": -0.5, "the sign is missing": -(math.log(4 / 3) + math.log(4)) / 2})
    check("bradley_terry_loss([ln 3, 0], [0, ln 3], margin=[ln 3, 0])",
          answers.bradley_terry_loss(chosen, rejected, torch.tensor([math.log(3), 0.0])), (math.log(2) + math.log(4)) / 2,
          {"the margin is added to the lead": (math.log(10 / 9) + math.log(4)) / 2,
           "the margin is left out": (math.log(4 / 3) + math.log(4)) / 2,
           "chosen and rejected stand in each other's place": (math.log(10) + math.log(4 / 3)) / 2})
    check("bradley_terry_loss([0], [200], margin=[0])",
          answers.bradley_terry_loss(torch.tensor([0.0]), torch.tensor([200.0]), torch.zeros(1)), 200,
          {"the sigmoid has become 0 before its logarithm was taken": math.inf,
           "chosen and rejected stand in each other's place": 0})
    torch.manual_seed(0)
    chosen, rejected = torch.randn(2, 16).requires_grad_()
    lead = (chosen - rejected).detach().requires_grad_()
    F.binary_cross_entropy_with_logits(lead - 0.3, torch.ones(16)).backward()
    check("the gradient of bradley_terry_loss with respect to the chosen rewards, margin 0.3",
          torch.autograd.grad(answers.bradley_terry_loss(chosen, rejected, torch.full((16,), 0.3)), chosen)[0], lead.grad)


def test_best_of_n(answers):
    # From the lowest reward to the highest the utilities are 0, 4, 1: of the three pairs the best are 4 once and 1 twice.
    rewards, utilities = torch.tensor([5.0, 1, 2]), torch.tensor([1.0, 0, 4])
    utility, _ = answers.best_of_n(rewards, utilities, 2)
    check("best_of_n(rewards=[5, 1, 2], utilities=[1, 0, 4], n=2), the utility", utility, 2,
          {"the utility, not the reward, chooses": 3, "the samples are drawn with replacement": 17 / 9,
           "the reward of the best is given": 4, "the n best of all are averaged": 5 / 2,
           "utilities are not in the order of the rewards": 8 / 3})
    # The rank u of the best of n, as a share, has the density n u^(n - 1) where the policy's is 1.
    u = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    for n in (2, 16):
        density = n * u ** (n - 1)
        _, divergence = answers.best_of_n(torch.arange(16.0), torch.arange(16.0), n)
        check(f"best_of_n of 16 samples, {n=}, the divergence", divergence, (density * density.log()).mean(),
              {"it is ln n, all that choosing one of n can tell": math.log(n)}, tolerance=1e-4)
    torch.manual_seed(0)
    rewards, utilities = torch.randn(2, 7, dtype=torch.float64)
    for n in (1, 3, 7):
        best = [max(chosen, key=lambda i: rewards[i]) for chosen in itertools.combinations(range(7), n)]
        check(f"best_of_n of 7 samples, n={n}, the utility", answers.best_of_n(rewards, utilities, n)[0],
              utilities[best].mean())
