"""What a run says at its end."""

import pytest

from vggexp.runner.summary import ADVICE, time_advice, total_times
from vggexp.training.timer import PARTS


@pytest.mark.parametrize("part", PARTS)
def test_a_part_out_of_proportion_is_told_with_its_cure(part):
    usual = dict.fromkeys(PARTS, 0.01)
    assert time_advice(1000, usual) == []
    told = time_advice(1000, usual | {part: 0.6})
    assert len(told) == (part in ADVICE) and time_advice(10, usual | {part: 0.6}) == []
    assert not told or (
        told[0].startswith(f"advice   60 % of the time is {part}; try ")
        and ADVICE[part][1] in told[0]
    )


def test_the_times_of_a_run_are_those_of_its_epochs_and_its_end():
    keys = ["time/epoch_seconds", *(f"time/{part}_seconds" for part in PARTS)]
    total = total_times([dict.fromkeys(keys, 2.0)] * 3, dict.fromkeys(keys, 1.0))
    assert total == {"seconds": 7.0, **dict.fromkeys(keys[1:], 7.0)}
