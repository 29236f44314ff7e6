"""Tests the fields of result.json."""

from vggexp.runner import result
from vggexp.training.timer import PARTS


def test_the_times_of_a_run_are_those_of_its_epochs_and_of_its_end():
    keys = ["time/epoch_seconds", *(f"time/{part}_seconds" for part in PARTS)]
    times = result.total_times([dict.fromkeys(keys, 2.0)] * 3, dict.fromkeys(keys, 1.0))
    assert times == {"seconds": 7.0, **dict.fromkeys(keys[1:], 7.0)}


def test_the_tested_epoch_is_the_last_or_the_first_of_the_best():
    history = [{"epoch": 1 + i, "val/accuracy": a} for i, a in enumerate((0.1, 0.3, 0.3, 0.2))]
    assert result.tested_epoch(history, "last")["epoch"] == 4
    assert result.tested_epoch(history, "best")["epoch"] == 2
