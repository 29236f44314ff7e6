"""Learning rates at named steps, by arithmetic."""

import pytest

from vggexp.training.schedules import Plateau, build_schedule

STEPS = 10  # an epoch; the run has 8 epochs
ONECYCLE = {"peak_fraction": 0.25, "initial_factor": 0.1, "final_factor": 0.02}
PLATEAU = {"gamma": 0.1, "patience": 2, "threshold": 0.001}


def rates(name, steps, warmup_epochs=0.0, **own):
    made = build_schedule(name, 0.5, warmup_epochs, epochs=8, steps_per_epoch=STEPS, **own)
    return [made.at(step) / 0.5 for step in steps]


@pytest.mark.parametrize(
    ("name", "own", "expected"),
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
def test_factor_at_a_step(name, own, expected):
    assert rates(name, expected, **own) == pytest.approx(list(expected.values()), abs=1e-12)


@pytest.mark.parametrize(
    ("warmup_epochs", "rise"), [(0, [1, 1, 1]), (0.3, [1 / 3, 2 / 3, 1]), (2, [0.05, 0.1, 0.15])]
)
def test_warm_up_rises_from_above_zero(warmup_epochs, rise):
    assert rates("constant", range(3), warmup_epochs) == pytest.approx(rise)
    plain, length = rates("cosine", range(80), final_factor=0), max(1, warmup_epochs * STEPS)
    warm = rates("cosine", range(80), warmup_epochs, final_factor=0)
    assert warm == pytest.approx(
        [rate * min(1, (step + 1) / length) for step, rate in enumerate(plain)]
    )


# accuracy after an epoch -> factor from then on; 0.5005 is no better than 0.5 by the threshold
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


@pytest.mark.parametrize("stop", range(len(SEQUENCE)))
def test_plateau_and_its_continuation(stop):
    made = build_schedule("plateau", 2.0, 0, epochs=8, steps_per_epoch=STEPS, **PLATEAU)
    for epoch, (accuracy, factor) in enumerate(SEQUENCE):
        if epoch == stop:
            kept, made.factor = made.factor.state_dict(), Plateau(**PLATEAU)
            made.factor.load_state_dict(kept)
        made.observe(accuracy)
        made.observe(None)  # an epoch without validation changes nothing
        assert made.at(epoch * STEPS) == pytest.approx(2 * factor)
