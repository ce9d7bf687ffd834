"""Lesson 9.5 - the mistakes of this part: each a wrong version of one function, put in its place by part_2/bug_museum.py.

    KL estimator k1 put in the loss         the divergence's unbiased estimate is taken for a penalty       (lesson 9.4)
    advantages whitened across groups       the batch's mean and spread stand in for those of each group    (lesson 9.2)
"""

from part_2.bug_museum import Bug


def k1_in_the_loss(right):
    """Whichever estimator was asked for, weighted or not: the mean of the log ratio is the divergence."""
    def kl_estimates(new, ref, estimator="k3", old=None):
        return right(new, ref, "k1")
    return kl_estimates


def whitened_across_groups(right):
    """All answers of the batch are one group."""
    def group_advantages(rewards, G, normalise=True):
        return right(rewards, len(rewards), normalise)
    return group_advantages


BUGS = (
    Bug("KL estimator k1 put in the loss", "the divergence is logged as it should be, and nothing holds the policy back",
        "part_9.kl:kl_estimates", k1_in_the_loss,
        "tests/part_9/test_kl.py::TestExpectedGradients"
        "::test_the_weighted_forms_are_that_of_the_divergence_from_the_reference"),
    Bug("advantages whitened across groups", "easy prompts have positive advantages and hard ones negative, whatever is "
        "answered, and the gradient is noisier", "part_9.group_advantage:group_advantages", whitened_across_groups,
        "tests/part_9/test_group_advantage.py::test_an_advantage_is_the_distance_from_the_group_s_mean"),
)
