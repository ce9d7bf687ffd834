"""Checks of the exercises of Part 8: one for each function, named for it."""

import math

import torch

from part_8.gae import generalised_advantages
from part_8.ppo_loss import policy_loss
from part_8.rewards import token_rewards
from tests.exercises.compare import check


def test_token_rewards(answers):
    # The first answer has two tokens behind a prompt and before padding, the second one three; beta is 0.1.
    scores, mask = torch.tensor([2.0, -1.0]), torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]]).bool()
    log_probs = torch.tensor([[-5.0, -1, -2, -7], [-5.0, -1, -1, -1]])
    ref = torch.tensor([[-1.0, -3, -1, -1], [-1.0, -1, -2, -4]])
    kl = torch.tensor([[0, -0.2, 0.1, 0], [0, 0, -0.1, -0.3]])
    at_the_end, in_the_last_column = torch.tensor([[[0.0, 0, 2, 0], [0, 0, 0, -1]], [[0, 0, 0, 2], [0, 0, 0, -1]]])
    got = answers.token_rewards(scores, log_probs, ref, mask, 0.1)
    check("token_rewards of two answers, beta=0.1", got, kl + at_the_end,
          {"leaving the reference is rewarded": at_the_end - kl, "every token gets the score": kl + mask * scores[:, None],
           "the score stands in the last column, behind the answer": kl + in_the_last_column,
           "prompt and padding are paid, too": at_the_end - 0.1 * (log_probs - ref),
           "the score is left out": kl, "beta is left out": at_the_end + 10 * kl})
    torch.manual_seed(0)
    log_probs, ref, scores = -torch.rand(5, 9), -torch.rand(5, 9), torch.randn(5)
    places, ends = torch.arange(9), torch.tensor([3, 9, 4, 8, 7])
    mask = (places >= 2) & (places < ends[:, None])
    got = answers.token_rewards(scores, log_probs, ref, mask, 0.5)
    check("token_rewards of five answers of 1 to 7 tokens", got, token_rewards(scores, log_probs, ref, mask, 0.5))
    check("the sum of token_rewards over an answer", got.sum(1), scores - 0.5 * (mask * (log_probs - ref)).sum(1))


def test_advantages(answers):
    # delta = 0.1 - 0.2, 0.6 - 0.1, 1 - 0.6. With lambda 1 they add up from behind, with 1/2 each counts half a step before.
    rewards, values = torch.tensor([0.0, 0, 1]), torch.tensor([0.2, 0.1, 0.6])
    asked = "advantages(rewards=[0, 0, 1], values=[0.2, 0.1, 0.6], "
    check(asked + "gamma=1, lam=0)", answers.advantages(rewards, values, 1.0, 0.0), [-0.1, 0.5, 0.4],
          {"V goes on behind the last token": [-0.1, 0.5, 1.0], "V of the next state is left out": [-0.2, -0.1, 0.4],
           "it is the return, not the advantage": [0.1, 0.6, 1.0]})
    check(asked + "gamma=1, lam=1)", answers.advantages(rewards, values, 1.0, 1.0), [0.8, 0.9, 0.4],
          {"lambda is left out": [-0.1, 0.5, 0.4], "it is the return, not the advantage": [1, 1, 1]})
    check(asked + "gamma=1, lam=0.5)", answers.advantages(rewards, values, 1.0, 0.5), [0.25, 0.7, 0.4],
          {"it runs from the first token to the last": [-0.1, 0.45, 0.625]})
    # gamma 1/2: delta = 0.05 - 0.2, 0.3 - 0.1, 0.4, and each counts a quarter a step before.
    check(asked + "gamma=0.5, lam=0.5)", answers.advantages(rewards, values, 0.5, 0.5), [-0.075, 0.3, 0.4],
          {"gamma discounts V but not the next advantage": [0.05, 0.4, 0.4]})
    torch.manual_seed(0)
    rewards, values = torch.randn(2, 12)
    check("advantages of an answer of 12 tokens, gamma=0.9, lam=0.8", answers.advantages(rewards, values, 0.9, 0.8),
          generalised_advantages(rewards[None], values[None], torch.ones(1, 12).bool(), 0.9, 0.8)[0][0])


def test_clipped_loss(answers):
    # The ratios are clipped, to 1.2 and 0.8, where they have gone where A asks for: the first and the last one.
    ratios, gains = torch.tensor([1.5, 0.5, 1.5, 0.5]), torch.tensor([1.0, 2, -1, -3])
    old = torch.full((4,), math.log(0.1))
    new = (ratios.log() + old).requires_grad_()
    right = (-1.2 - 1 + 1.5 + 2.4) / 4
    loss = answers.clipped_loss(new, old, gains, 0.2)
    check("clipped_loss of ratios [1.5, 0.5, 1.5, 0.5], advantages [1, 2, -1, -3], epsilon=0.2", loss, right,
          {"the larger one of both is taken": (-1.5 - 1.6 + 1.2 + 1.5) / 4,
           "nothing is clipped": (-1.5 - 1 + 1.5 + 1.5) / 4,
           "the minimum is left out, and every ratio clipped": (-1.2 - 1.6 + 1.2 + 2.4) / 4,
           "the sign is missing": -right, "the losses are summed up, not averaged": 4 * right})
    check("its gradient with respect to `new`", torch.autograd.grad(loss, new)[0], [0, -0.25, 0.375, 0],
          {"tokens are clipped that went the wrong way": [0, 0, 0, 0], "nothing is clipped": [-0.375, -0.25, 0.375, 0.375]})
    torch.manual_seed(0)
    new, old, gains = torch.randn(3, 40) / 3
    check("clipped_loss of 40 tokens, epsilon=0.1", answers.clipped_loss(new, old, gains, 0.1),
          policy_loss(new[None], old[None], gains[None], torch.ones(1, 40).bool(), 0.1)[0])
