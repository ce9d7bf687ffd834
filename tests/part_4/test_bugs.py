import pytest

from part_2 import optimization
from part_4.bugs import BUGS
from part_4.lr_schedule import SCHEDULES

[BUG] = BUGS


def by_name(*step):
    return optimization.warmup_cosine(*step)


def from_the_table(*step):
    return SCHEDULES["cosine"](*step)


@pytest.mark.parametrize("schedule", [by_name, from_the_table])
def test_the_warm_up_comes_again_wherever_the_steps_do_not_follow_on(schedule):
    # A warm-up of 4 steps to 1: 1/4, 2/4, 3/4, 1 and then, of 10 steps to 0, the cosine's first step, still 1.
    run = (10, 1.0, 0.0, 4)
    with BUG.installed():
        rates = [schedule(step, *run) for step in (0, 1, 2, 3, 4)]
        resumed = [schedule(step, *run) for step in (3, 4, 5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1]) and resumed == pytest.approx([0.25, 0.5, 0.75])
    assert [schedule(step, *run) for step in (3, 4)] == pytest.approx([1, 1])
