"""Exercises of Part 7. Replace each `raise`; `python3 -m pytest tests/exercises -k part_7` says whether you are right."""


def best_accuracy(utilities_a, utilities_b, temperature):
    """How often can a model agree with an annotator who errs, if it knows what he means?

    utilities_a, utilities_b: (N,) tensors, the true utilities of the two answers of each pair; temperature: tau, the
    annotator's. He prefers a with the probability 1 / (1 + exp(-(u_a - u_b) / tau)); the model always says that the better
    one is preferred. Returns the expected share of pairs in which it is right. Hint: the consistency of lesson 7.1.
    """
    raise NotImplementedError("solve me")


def bradley_terry_loss(chosen, rejected, margin):
    """What does it cost to have ranked the two answers of a pair like this?

    chosen, rejected: (N,) fp32 rewards; margin: (N,), by how much the chosen one should be ahead. Returns a scalar, the mean
    of -log sigmoid(r_c - r_r - m) in nats per pair. Hint: lesson 7.3. It must also be right for a pair ranked so wrongly
    that sigmoid gives 0 in fp32; -log sigmoid(x) is what torch calls softplus(-x).
    """
    raise NotImplementedError("solve me")


def best_of_n(rewards, utilities, n):
    """What is the best of n answers worth, if a reward model chooses it, and how far is that from the policy?

    rewards, utilities: (N,) tensors, of N samples to one prompt; no reward comes twice; n: from 1 to N. Returns the mean
    utility of the answer with the highest reward, over all ways to take n of the N, and the divergence of best-of-n from
    the policy in nats. Hint: lesson 7.4. In how many of the C(N, n) ways is the sample with the i-th lowest reward the best?
    """
    raise NotImplementedError("solve me")
