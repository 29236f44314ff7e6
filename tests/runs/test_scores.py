"""Which score is the better one, and mean and spread."""

from statistics import mean, stdev

import pytest

from vggexp.runs.repeats import mean_and_std, rank_key


@pytest.mark.parametrize(
    ("metric", "order"),
    [("val/accuracy", [0.9, 0.1, 0.0, None]), ("x/loss", [0.0, 0.1, 0.9, None])],
)
def test_the_best_is_first(metric, order):
    assert sorted([None, 0.0, 0.9, 0.1], key=lambda score: rank_key(score, metric)) == order


def test_spread():
    scores = [0.5, 0.7, 0.9]
    assert mean_and_std(scores) == pytest.approx((mean(scores), stdev(scores)))
    assert mean_and_std([0.5]) == (0.5, None)
