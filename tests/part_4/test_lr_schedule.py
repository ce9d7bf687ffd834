import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from part_2.optimization import warmup_cosine
from part_4.lr_schedule import SCHEDULES, constant, linear, warmup_stable_decay

SETTING = dict(steps=110, lr=1.0, min_lr=0.1, warmup_steps=10)
EVERY = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
FALLING = pytest.mark.parametrize("schedule", [SCHEDULES[name] for name in ("cosine", "linear", "wsd")],
                                  ids=["cosine", "linear", "wsd"])


def test_the_names_and_that_the_cosine_is_the_one_of_lesson_2_4():
    assert SCHEDULES == {"cosine": warmup_cosine, "linear": linear, "wsd": warmup_stable_decay, "constant": constant}


@EVERY
def test_warmup_starts_above_zero_rises_evenly_and_ends_at_the_full_rate(schedule):
    assert [schedule(step, **SETTING) for step in range(10)] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert schedule(10, **SETTING) == 1.0
    assert schedule(0, 110, 0.3, 0.1, 0) == 0.3  # without warmup
    assert [schedule(step, 3, 0.3, 0.0, 3) for step in range(3)] == pytest.approx([0.1, 0.2, 0.3])  # and nothing but it


@FALLING
def test_at_the_end_and_beyond_it_the_rate_is_the_floor(schedule):
    for step in (110, 111, 10**6):
        assert schedule(step, **SETTING) == 0.1
    assert schedule(3, 3, 0.3, 0.01, 3) == 0.01  # even where there was no way down
    assert schedule(1, 1, 0.3, 0.01, 0) == 0.01


def test_linear_by_hand():
    # 100 steps from 1 to 0.1: 0.009 a step.
    assert linear(11, **SETTING) == pytest.approx(0.991)
    assert linear(60, **SETTING) == pytest.approx(0.55)
    assert linear(109, **SETTING) == pytest.approx(0.109)


def test_warmup_stable_decay_by_hand():
    # The last fifth of 110 steps begins at 88. A quarter of the way down, at 93.5, half of the height is lost: sqrt(1/4).
    assert [warmup_stable_decay(step, **SETTING) for step in (10, 60, 87, 88)] == [1.0, 1.0, 1.0, 1.0]
    assert warmup_stable_decay(89, **SETTING) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(1 / 22)))
    assert warmup_stable_decay(109, **SETTING) == pytest.approx(0.1 + 0.9 * (1 - math.sqrt(21 / 22)))
    assert warmup_stable_decay(25, 100, 1.0, 0.1, 0, decay_fraction=1.0) == pytest.approx(0.55)
    later = warmup_stable_decay(65, 100, 1.0, 0.2, 10, decay_fraction=0.4)  # 5 of 40 steps down
    assert later == pytest.approx(0.2 + 0.8 * (1 - math.sqrt(1 / 8)))
    assert warmup_stable_decay(99, 100, 1.0, 0.2, 10, decay_fraction=0.0) == 1.0


def test_the_decay_waits_for_the_warmup():
    # Warmup to 90 of 100: the decay has the last 10 steps, not the last 20. At 92.5 it would be half way down.
    assert [warmup_stable_decay(step, 100, 0.9, 0.0, 90) for step in (85, 89, 90)] == pytest.approx([0.86, 0.9, 0.9])
    assert warmup_stable_decay(94, 100, 1.0, 0.0, 90) == pytest.approx(1 - math.sqrt(0.4))


def test_constant_never_falls():
    assert [constant(step, **SETTING) for step in (10, 60, 109, 110, 10**6)] == [1.0] * 5


def torch_rates(make_scheduler, steps, lr):
    """The rate of each update under a scheduler of torch.optim."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, rates = make_scheduler(optimizer), []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


def test_without_warmup_they_are_torch_s_schedulers():
    steps, lr, min_lr = 40, 0.3, 0.06
    for schedule, make_scheduler in (
            (warmup_cosine, lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps, eta_min=min_lr)),
            (linear, lambda opt: torch.optim.lr_scheduler.LinearLR(opt, 1.0, min_lr / lr, steps)),
            (constant, lambda opt: torch.optim.lr_scheduler.ConstantLR(opt, 1.0))):
        ours = [schedule(step, steps, lr, min_lr, 0) for step in range(steps)]
        assert ours == pytest.approx(torch_rates(make_scheduler, steps, lr))


@pytest.mark.parametrize("schedule, after", [
    (warmup_cosine, lambda opt: torch.optim.lr_scheduler.CosineAnnealingLR(opt, 30, eta_min=0.06)),
    (linear, lambda opt: torch.optim.lr_scheduler.LinearLR(opt, 1.0, 0.2, 30))], ids=["cosine", "linear"])
def test_with_warmup_they_are_torch_s_schedulers_one_after_the_other(schedule, after):
    # torch: 1/10 at step 0 and 1 at step 9, the decay's first value at step 10.
    def in_sequence(opt):
        warmup = torch.optim.lr_scheduler.LinearLR(opt, 0.1, 1.0, 9)
        return torch.optim.lr_scheduler.SequentialLR(opt, [warmup, after(opt)], [10])

    assert [schedule(step, 40, 0.3, 0.06, 10) for step in range(40)] == pytest.approx(torch_rates(in_sequence, 40, 0.3))


@EVERY
@given(steps=st.integers(1, 300), data=st.data(), lr=st.floats(1e-6, 10), share=st.floats(0, 1))
def test_the_rate_rises_during_warmup_then_never_and_stays_between_floor_and_peak(schedule, steps, data, lr, share):
    warmup_steps, min_lr = data.draw(st.integers(0, steps)), share * lr
    rates = [schedule(step, steps, lr, min_lr, warmup_steps) for step in range(steps + 3)]
    warmup, rest = rates[:warmup_steps], rates[warmup_steps:]
    assert all(earlier < later for earlier, later in zip(warmup, warmup[1:]))
    assert all(earlier >= later - 1e-12 * lr for earlier, later in zip(rest, rest[1:]))
    assert all(0 < rate <= lr * (1 + 1e-12) for rate in warmup)
    assert all(min_lr - 1e-12 * lr <= rate <= lr * (1 + 1e-12) for rate in rest)
    assert max(rates) == pytest.approx(lr)
