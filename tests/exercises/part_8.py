"""Exercises of Part 8. Replace each `raise`; `python3 -m pytest tests/exercises -k part_8` says whether you are right."""


def token_rewards(scores, log_probs, ref_log_probs, mask, beta):
    """What is each token of an answer paid?

    scores: (B,), the reward model's; log_probs, ref_log_probs: (B, T), of the tokens chosen, under the policy and under the
    reference; mask: (B, T) bool, the tokens of the answer, at least one in a row and side by side; beta: price of a nat.
    Returns (B, T), 0 where `mask` is False. Hint: lesson 8.2. Where is the last token of an answer that padding follows?
    """
    raise NotImplementedError("solve me")


def advantages(rewards, values, gamma, lam):
    """How much better was each token than what was to be expected?

    rewards, values: (T,), of one answer: what each token was paid, and V of the state in which it was chosen; gamma, lam:
    gamma and lambda. Returns (T,), the generalised advantages. Hint: the section Advantages of lesson 8.4; from the last
    token to the first, and behind the last one V is 0.
    """
    raise NotImplementedError("solve me")


def clipped_loss(new, old, advantages, epsilon):
    """What is minimised, so that what went better than expected becomes more probable, but not by too much?

    new, old: (N,) log-probabilities of N tokens, now and when they were drawn; advantages: (N,). Returns a scalar, the mean
    of -min(rho A, clip(rho, 1 - epsilon, 1 + epsilon) A), whose gradient goes to `new`. Hint: lesson 8.3; with a negative
    advantage the smaller one of two is not the one that you may think.
    """
    raise NotImplementedError("solve me")
