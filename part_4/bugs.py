"""Lesson 4.4 - the mistake of this part: a wrong version of one function, put in its place by part_2/bug_museum.py.

    warm-up restarts on resume    the schedule counts the steps of the process instead of those of the run
"""

from part_2.bug_museum import Bug


def warm_up_restarts_on_resume(right):
    """As a scheduler object does that each process makes anew, and whose count is not in the checkpoint."""
    first = last = None

    def warmup_cosine(step, steps, lr, min_lr, warmup_steps):
        nonlocal first, last
        if last is None or step != last + 1:  # a run begins here, or goes on
            first = step
        last = step
        return right(step - first, steps, lr, min_lr, warmup_steps)
    return warmup_cosine


BUGS = (
    Bug("warm-up restarts on resume", "after each resumption the learning rate starts anew, the loss rises and ends higher",
        "part_2.optimization:warmup_cosine", warm_up_restarts_on_resume,
        "tests/part_4/test_checkpoint.py::test_a_crashed_run_resumed_ends_bit_for_bit_like_one_that_was_not"),
)
