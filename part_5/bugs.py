"""Lesson 5.3 - the mistake of this part: a wrong version of one function, put in its place by part_2/bug_museum.py.

    load balancing off    the balance loss is computed and logged, but not added to what is minimised     (lesson 5.1)
"""

from part_2.bug_museum import Bug
from part_5.hybrid import moe_layers


def load_balancing_off(right):
    """The z-loss alone; what `after_update` logs is as before."""
    def auxiliary_loss(model):
        layers = moe_layers(model)
        return sum(model.config.z_weight * layer.z_loss for layer in layers) / max(1, len(layers))
    return auxiliary_loss


BUGS = (
    Bug("load balancing off", "a few experts get most of the tokens, and under a capacity many choices are dropped",
        "part_5.hybrid:auxiliary_loss", load_balancing_off,
        "tests/part_5/test_hybrid.py::test_the_auxiliary_loss_is_the_mean_over_the_layers_of_both_losses_written_out"),
)
