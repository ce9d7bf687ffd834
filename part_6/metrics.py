"""Lesson 6.4 - metrics: how good is an answer, and how sure can one be of an average over a few hundred?

    exact match    the verifier's yes or no; without a verifier: the same text after `normalise`
    token F1       2 P R / (P + R), words in common over words of the answer (P) and of the reference (R), as multisets
                                                                                        (Rajpurkar et al. 2016, SQuAD)
    ROUGE-L        the same with the longest common subsequence, so that order counts   (Lin 2004, section 3.1)
    interval       2.5 % to 97.5 % of the means of resampled answers                    (Efron 1979, the bootstrap)

`normalise` says what "the same" is: case, ASCII punctuation and the amount of blanks do not count, everything else does.
SQuAD's own also leaves out "a", "an" and "the", and joins what stood on both sides of a punctuation mark. Without
punctuation -5 is 5 and 1.5 is "1 5": where a sign or a decimal point matters, use a verifier.
"""

import string
from collections import Counter

import numpy as np

_PUNCTUATION = str.maketrans({sign: " " for sign in string.punctuation})


def normalise(text):
    """The words that are compared, a list of str: lower case, ASCII punctuation is a blank, blanks in a row are one."""
    return text.lower().translate(_PUNCTUATION).split()


def exact_match(answer, reference):
    """Whether both have the same words in the same order, after `normalise`."""
    return normalise(answer) == normalise(reference)


def _f1(common, n_answer, n_reference):
    if n_answer + n_reference == 0:
        return 1.0
    return 2 * common / (n_answer + n_reference)  # = 2 P R / (P + R)


def token_f1(answer, reference):
    """The F1 of the words, 0 to 1, order left aside; 1 for two texts without words, 0 for one."""
    answer, reference = normalise(answer), normalise(reference)
    return _f1((Counter(answer) & Counter(reference)).total(), len(answer), len(reference))


def rouge_l(answer, reference):
    """The F1 of the longest common subsequence of the words, 0 to 1."""
    answer, reference = normalise(answer), normalise(reference)
    lengths = [0] * (len(reference) + 1)  # of the longest common subsequence with the reference's first j words
    for word in answer:
        diagonal = 0
        for j, other in enumerate(reference, 1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if word == other else max(lengths[j], lengths[j - 1])
    return _f1(lengths[-1], len(answer), len(reference))


def bootstrap_interval(groups, level=0.95, n_resamples=2000, seed=0):
    """The percentile interval of a mean of means: (low, high).

    groups: lists of numbers, one an answer, such as the verdicts of each task family; each resample draws as many as there
    are from every group, with replacement. One group gives the interval of an ordinary mean. Numbers that are all the same
    give an interval of no width, because no resample holds what was never seen: of n answers that are all right, the truth
    may be as low as 1 - 3/n (Hanley & Lippman-Hand 1983, the "rule of three"). ValueError for an empty group, or none.
    """
    groups = [np.asarray(group, dtype=float) for group in groups]
    if not groups or min(group.size for group in groups) == 0:
        raise ValueError("no interval can be given for the mean of nothing")
    rng, means = np.random.default_rng(seed), []
    for group in groups:
        means.append(group[rng.integers(group.size, size=(n_resamples, group.size))].mean(axis=1))
    return tuple(np.quantile(np.mean(means, axis=0), [(1 - level) / 2, (1 + level) / 2]).tolist())
