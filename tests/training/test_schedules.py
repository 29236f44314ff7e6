"""Learning rates at named steps, by arithmetic."""

import pytest

from vggexp.training.schedules import Plateau, build_schedule

STEPS = 10  # per epoch; the run has 8 epochs
ONECYCLE = {"peak_fraction": 0.25, "initial_factor": 0.1, "final_factor": 0.02}
PLATEAU = {"gamma": 0.1, "patience": 2, "threshold": 0.001}


def factors(name, steps, warmup_epochs=0.0, **arguments):
    schedule = build_schedule(
        name, 0.5, warmup_epochs, epochs=8, steps_per_epoch=STEPS, **arguments
    )
    return [schedule.at(step) / 0.5 for step in steps]


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
        ("onecycle", ONECYCLE, {0: 0.1, 10: 0.55, 20: 1, 50: 0.51, 80: 0.02, 500: 0.02}),
        ("plateau", PLATEAU, {0: 1, 79: 1}),
    ],
)
def test_factor_at_a_step(name, arguments, expected):
    actual = factors(name, expected, **arguments)
    assert actual == pytest.approx(list(expected.values()), abs=1e-12)


@pytest.mark.parametrize(
    ("warmup_epochs", "rise"), [(0, [1, 1, 1]), (0.3, [1 / 3, 2 / 3, 1]), (2, [0.05, 0.1, 0.15])]
)
def test_a_warm_up_rises_from_above_zero(warmup_epochs, rise):
    assert factors("constant", range(3), warmup_epochs) == pytest.approx(rise)
    steps = max(1, warmup_epochs * STEPS)
    expected = [
        factor * min(1, (step + 1) / steps)
        for step, factor in enumerate(factors("cosine", range(80), final_factor=0))
    ]
    assert factors("cosine", range(80), warmup_epochs, final_factor=0) == pytest.approx(expected)


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
        schedule.observe(accuracy)
        schedule.observe(None)  # an epoch without validation changes nothing
        assert schedule.at(epoch * STEPS) == pytest.approx(2 * factor)


def test_a_plateau_waits_as_long_for_each_further_reduction():
    plateau = Plateau(**PLATEAU)
    factors_after = []
    for _ in range(8):
        plateau.observe(0.5)
        factors_after.append(plateau(0))
    assert factors_after == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
