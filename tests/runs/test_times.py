"""The parts of the time of a run add up to its seconds."""

from vggexp.runs.times import added_seconds, part_seconds

RESULT = {
    "seconds": 10.0,
    "time/compute_seconds": 6.0,
    "time/evaluation_seconds": 3.0,
    "time/test_seconds": 2.0,
    "time/startup_seconds": 50.0,
    "time/rest_seconds": 300.0,
}


def test_the_test_is_a_part_of_its_own():
    assert part_seconds(RESULT) == {"compute": 6.0, "evaluation": 1.0, "test": 2.0}


def test_an_epoch_has_no_test_at_the_end_and_is_no_part():
    row = {"epoch": 1, "time/epoch_seconds": 3.0, "time/evaluation_seconds": 1.0}
    assert part_seconds(row | {"time/data_seconds": None}) == {"evaluation": 1.0}


def test_start_and_pauses_come_in_addition():
    assert added_seconds(RESULT) == {"start-up": 50.0, "rest": 300.0}
    assert added_seconds({}) == {"start-up": 0.0, "rest": 0.0}
