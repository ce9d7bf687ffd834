"""Exercises of Part 4. Replace each `raise`; `python3 -m pytest tests/exercises -k part_4` says whether you are right."""


def one_merge(chunks, new):
    """One step of byte-pair encoding.

    chunks: dict of a chunk, a tuple of ids, to how often it occurs; new: the id of the new token. Returns the most frequent
    pair of neighbours, a tuple of two ids, and the chunks with `new` in place of the pair, from left to right, as a dict
    like the one given. No two pairs are equally frequent. Hint: lesson 4.1; a chunk that occurs five times counts five
    times, and in (1, 1, 1) the pair (1, 1) is counted twice but merged once.
    """
    raise NotImplementedError("solve me")


def accumulate(model, micro_batches):
    """Gradient accumulation over pieces that hold unequal numbers of targets.

    model: gives logits (b, V) for inputs (b, C); micro_batches: list of (inputs, targets), targets (b,) int64 with -100
    where there is nothing to predict. Afterwards each weight's .grad is the gradient of the mean loss over all targets of
    all micro-batches that are not -100; only one micro-batch's graph is held at a time. Returns nothing.
    Hint: lesson 4.2; torch's cross_entropy takes reduction="sum", and -100 is what it ignores.
    """
    raise NotImplementedError("solve me")


def learning_rate(step, steps, lr, min_lr, warmup_steps):
    """Warmup and cosine.

    step: the number of the update, counted from 0. The first takes lr / warmup_steps, number warmup_steps - 1 the full lr,
    and from number warmup_steps, which takes it too, half a cosine leads to min_lr at `steps`. Returns the rate.
    Hint: lessons 2.4 and 4.3.
    """
    raise NotImplementedError("solve me")
