"""Lesson 6.3 - the curriculum: which examples a step learns from, as a pure function of seed and step.

    uniform       shuffled, epoch by epoch
    easy_first    drawn from the easiest share c of all;   c = sqrt(c_0^2 + (1 - c_0^2) step / (pace steps)), at most 1
    short_first   the same, by number of tokens instead of difficulty
    hard_first    the same, from the hardest on

The idea is Bengio et al.'s (2009, "Curriculum Learning"); the pace is the square-root competence of Platanios et al. (2019,
"Competence-based Curriculum Learning for Neural Machine Translation", equation 8), under which a new example is drawn as
often as any other that is in. Nothing is kept from step to step, so a resumed run draws what the first one would have.
"""

import numpy as np

CURRICULA = ("uniform", "easy_first", "short_first", "hard_first")


def competence(step, steps, start=0.1, pace=0.5):
    """The share of the examples that may be drawn at `step`, from `start` (c_0) at 0 to 1 at pace * steps and after."""
    return min(1.0, (start**2 + (1 - start**2) * step / (pace * steps)) ** 0.5)


def draw_batch(kind, difficulties, lengths, seed, step, steps, batch_size):
    """The indices of the examples of a step: (batch_size,) int64, none twice; a function of its arguments alone.

    kind: of CURRICULA; difficulties, lengths: (N,) numbers, one an example; steps: of the whole run. Examples that are
    equally hard enter in a random order, which the seed decides. ValueError for an unknown kind, or a batch larger than N.
    """
    n = len(difficulties)
    if kind not in CURRICULA:
        raise ValueError(f"the curriculum must be one of {', '.join(CURRICULA)}, not {kind}")
    if not 1 <= batch_size <= n:
        raise ValueError(f"a batch of {batch_size} cannot be drawn from {n} examples")
    if kind == "uniform":
        per_epoch = n // batch_size  # the rest, fewer than a batch, is not drawn in this epoch
        epoch, place = divmod(step, per_epoch)
        return _shuffled(n, seed, epoch)[place * batch_size:(place + 1) * batch_size]
    keys = {"easy_first": np.asarray(difficulties), "short_first": np.asarray(lengths),
            "hard_first": -np.asarray(difficulties)}[kind]
    ties = _shuffled(n, seed, 0)
    ranked = ties[np.argsort(keys[ties], kind="stable")]
    n_in = max(batch_size, round(competence(step, steps) * n))
    rng = np.random.default_rng((seed % 2**64, 1, step))
    return ranked[rng.choice(n_in, size=batch_size, replace=False)]


def _shuffled(n, seed, epoch):
    return np.random.default_rng((seed % 2**64, 0, epoch)).permutation(n)
