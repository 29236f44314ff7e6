"""Learning rates at named steps by arithmetic, and at every step as torch.optim.lr_scheduler."""

import math
from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler

from vggexp.training.schedules import Plateau, build_schedule

STEPS = 10  # per epoch; the run has 8 epochs
ONECYCLE = {"peak_fraction": 0.25, "initial_factor": 0.1, "final_factor": 0.02}
PLATEAU = {"gamma": 0.1, "patience": 2, "threshold": 0.001}


def rates(name, warmup_epochs=0.0, steps=range(80), **arguments):
    schedule = build_schedule(
        name, 0.5, warmup_epochs, epochs=8, steps_per_epoch=STEPS, **arguments
    )
    return [schedule.at(step) for step in steps]


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("constant", {}, {0: 1, 79: 1, 500: 1}),
        (
            "step",
            {"milestones": [3, 6.5], "gamma": 0.1},
            {0: 1, 29: 1, 30: 0.1, 64: 0.1, 65: 0.01, 500: 0.01},
        ),
        ("cosine", {"final_factor": 0}, {0: 1, 20: (1 + 0.5**0.5) / 2, 40: 0.5, 80: 0, 500: 0}),
        ("cosine", {"final_factor": 0.2}, {0: 1, 40: 0.6, 80: 0.2, 500: 0.2}),
        ("onecycle", ONECYCLE, {0: 0.1, 9.5: 0.55, 19: 1, 49: 0.51, 79: 0.02, 500: 0.02}),
        ("plateau", PLATEAU, {0: 1, 79: 1}),
    ],
)
def test_rate_at_a_step(name, arguments, expected):
    actual = rates(name, steps=expected, **arguments)
    assert actual == pytest.approx([0.5 * factor for factor in expected.values()], abs=1e-12)


def cosine_of_torch(optimizer, steps, final_factor):
    return lr_scheduler.CosineAnnealingLR(optimizer, steps, 0.5 * final_factor)


def onecycle_of_torch(optimizer, steps, peak_fraction, initial_factor, final_factor):
    return lr_scheduler.OneCycleLR(
        optimizer,
        0.5,
        total_steps=steps,
        pct_start=peak_fraction,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=1 / initial_factor,
        final_div_factor=initial_factor / final_factor if final_factor else math.inf,
    )


def multistep_of_torch(optimizer, steps, milestones, gamma):
    milestones = [round(epoch * STEPS) for epoch in milestones]
    return lr_scheduler.MultiStepLR(optimizer, milestones, gamma)


def constant_of_torch(optimizer, steps):
    return lr_scheduler.ConstantLR(optimizer, 1)


def linear_of_torch(optimizer, steps):
    return lr_scheduler.LinearLR(optimizer, 1 / steps, total_iters=steps - 1)


def rates_of_torch(build_scheduler, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.5)
    scheduler = build_scheduler(optimizer, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < steps:  # one cycle has no rate after its last step
            scheduler.step()
    return rates


SCHEDULERS = [
    ("constant", constant_of_torch, {}),
    ("step", multistep_of_torch, {"milestones": [3, 6.5], "gamma": 0.1}),
    ("cosine", cosine_of_torch, {"final_factor": 0}),
    ("cosine", cosine_of_torch, {"final_factor": 0.2}),
    ("onecycle", onecycle_of_torch, ONECYCLE),
    ("onecycle", onecycle_of_torch, ONECYCLE | {"final_factor": 0}),
    ("onecycle", onecycle_of_torch, ONECYCLE | {"peak_fraction": 0.333}),
    ("onecycle", onecycle_of_torch, ONECYCLE | {"peak_fraction": 0.001, "initial_factor": 1}),
    ("onecycle", onecycle_of_torch, ONECYCLE | {"peak_fraction": 0.999}),
]


@pytest.mark.parametrize(("name", "scheduler", "arguments"), SCHEDULERS)
def test_every_step_has_torchs_rate(name, scheduler, arguments):
    expected = rates_of_torch(partial(scheduler, **arguments), 80)
    assert rates(name, **arguments) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("warmup_epochs", [0.1, 0.3, 1.1, 2, 7.9])
@pytest.mark.parametrize(("name", "scheduler", "arguments"), SCHEDULERS[2:])
def test_cosine_and_onecycle_start_after_the_warm_up(name, scheduler, arguments, warmup_epochs):
    """As SequentialLR after a LinearLR, whose last step has the whole rate."""
    warmup_steps = round(warmup_epochs * STEPS)
    rise = rates_of_torch(linear_of_torch, warmup_steps)
    rest = rates_of_torch(partial(scheduler, **arguments), 80 - warmup_steps)
    actual = rates(name, warmup_epochs, **arguments)
    assert actual == pytest.approx(rise + rest, abs=1e-12)
    assert actual[warmup_steps - 1] == pytest.approx(0.5)


@pytest.mark.parametrize("name", ["constant", "step"])
def test_a_warm_up_scales_the_other_schedules(name):
    arguments = {"milestones": [1, 3], "gamma": 0.1} if name == "step" else {}
    rise = [min(1, (step + 1) / 20) for step in range(80)]
    plain = rates(name, **arguments)
    expected = [rate * factor for rate, factor in zip(plain, rise, strict=True)]
    assert rates(name, 2, **arguments) == pytest.approx(expected)


def test_a_warm_up_may_take_the_whole_run():
    rise = [0.5 * (step + 1) / 80 for step in range(80)]
    assert rates("cosine", 8, final_factor=0) == pytest.approx(rise)
    assert rates("onecycle", 8, **ONECYCLE) == pytest.approx(rise)


def test_a_warm_up_may_end_within_a_step():
    expected = [0.5 * share for share in (1 / 2.1, 2 / 2.1, 1, 1)]
    actual = rates("cosine", 0.21, final_factor=0)
    assert actual[:4] == pytest.approx(expected)  # the cosine starts in the fourth step
    assert actual[4] < 0.5
    assert rates("onecycle", 0.21, **ONECYCLE)[2:4] == pytest.approx([0.5, 0.05])


def test_the_last_step_of_one_cycle_has_exactly_the_final_rate():
    arguments = ONECYCLE | {"final_factor": 0}
    for steps in range(1, 100):
        schedule = build_schedule("onecycle", 0.3, 0, epochs=3, steps_per_epoch=steps, **arguments)
        assert schedule.at(3 * steps - 1) == 0
        assert schedule.at(3 * steps - 2) > 0


# Accuracy after an epoch and the factor from then on. 0.5005 is 0.5 plus less than the threshold.
SEQUENCE = [
    (0.3, 1),
    (0.5, 1),
    (0.5005, 1),
    (0.4, 1),
    (0.5, 0.1),
    (0.6, 0.1),
    (0.1, 0.1),
    (0.1, 0.1),
    (0.1, 0.01),
]


@pytest.mark.parametrize("resumed_epoch", range(len(SEQUENCE)))
def test_a_plateau_and_its_resumption(resumed_epoch):
    schedule = build_schedule("plateau", 2.0, 0, epochs=8, steps_per_epoch=STEPS, **PLATEAU)
    for epoch, (accuracy, factor) in enumerate(SEQUENCE):
        if epoch == resumed_epoch:
            state = schedule.state_dict()
            schedule.factor = Plateau(**PLATEAU)
            schedule.load_state_dict(state)
        schedule.observe(accuracy, epoch + 1)
        schedule.observe(None, epoch + 1)  # an epoch without validation changes nothing
        assert schedule.at(epoch * STEPS) == pytest.approx(2 * factor)


def test_a_plateau_waits_as_long_for_each_further_reduction():
    plateau = Plateau(**PLATEAU)
    factors_after = []
    for _ in range(8):
        plateau.observe(0.5)
        factors_after.append(plateau(0))
    assert factors_after == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_a_plateau_does_not_fall_before_the_warm_up_has_reached_the_rate():
    schedule = build_schedule("plateau", 2.0, 4, epochs=8, steps_per_epoch=STEPS, **PLATEAU)
    ends = []
    for epoch in range(1, 9):
        ends.append(schedule.at(epoch * STEPS - 1))
        schedule.observe(0.5, epoch)
    assert ends == pytest.approx([0.5, 1, 1.5, 2, 2, 2, 2, 0.2])


def test_the_accuracy_of_the_warm_up_is_to_be_exceeded():
    plateau = Plateau(**PLATEAU)
    plateau.observe(0.5, in_warmup=True)
    for _ in range(3):
        plateau.observe(0.4)
    assert plateau(0) == pytest.approx(0.1)
