"""Exercises of Part 9. Replace each `raise`; `python3 -m pytest tests/exercises -k part_9` says whether you are right."""


def group_advantages(rewards, G):
    """How good is each answer beside the others to the same prompt?

    rewards: (B,), the G answers to a prompt side by side, B a multiple of G. Returns (B,): each reward less its group's
    mean, divided by the group's standard deviation (over G, not G - 1) plus 0.0001. Answers that are all rewarded alike
    teach nothing: 0. Hint: lessons 9.1 and 9.2.
    """
    raise NotImplementedError("solve me")


def k3(new, ref):
    """How far has the policy gone from the reference, judged by the tokens that it drew?

    new, ref: (...) log-probabilities of these tokens, under the policy and under the reference. Returns (...), the k3
    estimates: never negative, right on average, and with a gradient to `new`. Hint: lesson 9.4, and its d.
    """
    raise NotImplementedError("solve me")


def pass_at_k(n, c, k):
    """How probable is it that one of k answers is right, at least?

    n: answers that were sampled; c: those of them that are right; k: from 1 to n. Returns the share of all ways to take k of
    the n in which a right one is among them. Hint: lesson 9.5. The k are taken without putting any back, so it is not
    1 - (1 - c / n)^k.
    """
    raise NotImplementedError("solve me")
