"""Lesson 8.4 - the mistakes of this part: each a wrong version of one function, put in its place by part_2/bug_museum.py.

    sampling at one temperature and scoring at another    log pi_old is taken at temperature 1              (lesson 8.1)
    EOS not scored                                        the mask takes the end token for padding          (lesson 8.4)
"""

import inspect

from part_2.bug_museum import Bug


def scored_at_temperature_1(right):
    """The logits are what the model gives; that sampling divided them by something is forgotten."""
    def make_experience(*args, **options):
        given = inspect.signature(right).bind(*args, **options).arguments
        return right(**{**given, "temperature": 1.0})
    return make_experience


def end_not_scored(right):
    """The mask leaves out every token that has the end token's id, as if it were padding."""
    def as_rollout(prompts, answers, end):
        rollout = right(prompts, answers, end)
        return rollout._replace(mask=rollout.mask & (rollout.tokens[:, 1:] != end))
    return as_rollout


BUGS = (
    Bug("sampling at one temperature and scoring at another",
        "the ratio of new and old probability is not 1 before anything is learnt, and the first update is clipped",
        "part_8.experience:make_experience", scored_at_temperature_1,
        "tests/part_8/test_train_ppo.py::"
        "test_the_first_update_sees_a_ratio_of_1_and_all_of_them_do_where_nothing_moves"),
    Bug("EOS not scored", "whatever the score says of ending, the policy hardly learns it",
        "part_8.rollout:as_rollout", end_not_scored, "tests/part_8/test_rollout.py::test_a_rollout_worked_by_hand"),
)
