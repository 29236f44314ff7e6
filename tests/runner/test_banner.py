"""Tests the lines at the end of a run."""

import pytest

from vggexp.runner.banner import ADVICE, time_advice
from vggexp.training.timer import PARTS

USUAL = dict.fromkeys(PARTS, 0.01)


def test_usual_times_need_no_advice():
    assert time_advice(1000, USUAL) == []


@pytest.mark.parametrize("part", PARTS)
def test_a_part_out_of_proportion_gets_advice(part):
    shares = USUAL | {part: 0.6}
    lines = time_advice(1000, shares)
    if part in ADVICE:
        _, remedy = ADVICE[part]
        assert lines == [f"advice   60 % of the time is {part}; try {remedy}"]
    else:
        assert lines == []
    assert time_advice(10, shares) == []  # a short run
