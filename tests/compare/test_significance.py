"""Checks tests and intervals against scipy.stats, which the package does not import."""

from math import log, sqrt

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from vggexp.compare.significance import (
    estimate_mean,
    holm,
    mcnemar,
    paired_t_test,
    tango_interval,
    welch_t_test,
)

accuracies = st.integers(0, 10_000).map(lambda correct: correct / 10_000)
samples = st.lists(accuracies, min_size=2, max_size=12).filter(lambda values: len(set(values)) > 1)
tolerance = {"rel": 1e-6, "abs": 1e-12}


def check(result, reference):
    interval = tuple(reference.confidence_interval(0.95))
    assert result.p == pytest.approx(reference.pvalue, **tolerance)
    assert result.interval == pytest.approx(interval, **tolerance)


@given(samples)
def test_mean(values):
    estimate = estimate_mean(values)
    interval = stats.t.interval(0.95, len(values) - 1, numpy.mean(values), stats.sem(values))
    assert estimate.n == len(values)
    assert estimate.mean == pytest.approx(numpy.mean(values))
    assert estimate.std == pytest.approx(numpy.std(values, ddof=1))
    assert estimate.interval == pytest.approx(interval, **tolerance)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=12))
def test_paired(rows):
    first, second = zip(*rows, strict=True)
    result = paired_t_test(first, second)
    if len({round(a - b, 9) for a, b in rows}) > 1:
        check(result, stats.ttest_rel(first, second))
    else:
        assert result.p is None


@given(samples, samples)
def test_welch(first, second):
    check(welch_t_test(first, second), stats.ttest_ind(first, second, equal_var=False))


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_welch_if_one_sample_has_no_spread():
    first = [0.5, 0.5]
    second = [0.25, 0.375]
    check(welch_t_test(first, second), stats.ttest_ind(first, second, equal_var=False))


@pytest.mark.parametrize("test", [paired_t_test, welch_t_test])
@pytest.mark.parametrize(
    ("first", "second"),
    [([0.9], [0.8]), ([0.9, 0.9], [0.9, 0.9]), ([0.9, 0.9], [0.8, 0.8]), ([0.0, 0.0], [0.0, 0.0])],
)
def test_nothing_is_claimed_without_spread(test, first, second):
    assert test(first, second) == (pytest.approx(first[0] - second[0]), None, None)
    assert estimate_mean(first).interval is None


def test_rounding_is_no_spread():
    assert paired_t_test([0.3, 0.4, 0.9], [0.2, 0.3, 0.8]).p is None
    assert estimate_mean([0.1, 0.3 - 0.2, 0.1]).interval is None
    assert welch_t_test([0.9], [0.8, 0.7]).p is None


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar(only_first, only_second):
    p = mcnemar(only_first, only_second)
    if only_first + only_second == 0:
        assert p == 1
        return
    reference = stats.binomtest(only_first, only_first + only_second)
    assert p == pytest.approx(reference.pvalue, **tolerance)


def test_the_interval_of_a_published_example():
    """Fagerland, Lydersen and Laake 2014, Statistics in Medicine 33:2850: the airway data."""
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=5e-4)


@pytest.mark.parametrize("counts", [(90, 11, 360), (3, 5, 40), (1, 7, 21), (400, 350, 10_000)])
def test_a_limit_is_just_not_rejected(counts):
    """At a limit the counts are 1.96 standard errors away, by a search for the likelihood."""
    only_first, only_second, images = counts
    rest = images - only_first - only_second
    for limit, distance in zip(tango_interval(*counts), (1.959964, -1.959964), strict=True):

        def unlikelihood(share, limit=limit):
            terms = only_first * log(share + limit) + only_second * log(share)
            return -terms - rest * log(1 - 2 * share - limit)

        bounds = (max(0, -limit) + 1e-9, (1 - limit) / 2 - 1e-9)
        share = optimize.minimize_scalar(unlikelihood, bounds=bounds, options={"xatol": 1e-9}).x
        error = sqrt(images * (2 * share + limit - limit**2))
        excess = only_first - only_second - images * limit
        assert excess / error == pytest.approx(distance, abs=1e-3)


@pytest.mark.parametrize(
    ("counts", "interval"),
    [
        ((0, 0, 100), (-0.037, 0.037)),
        ((100, 0, 100), (0.926, 1)),
        ((0, 100, 100), (-1, -0.926)),
        ((50, 50, 100), (-0.192, 0.192)),
    ],
)
def test_the_interval_at_the_edges(counts, interval):
    assert tango_interval(*counts) == pytest.approx(interval, abs=5e-4)


@pytest.mark.parametrize(
    ("only_first", "only_second", "images"),
    [
        (0.25, 0.03, 360),
        (0.05, 0.0, 1000),
        (0.1, 0.02, 360),
        (0.01, 0.005, 2000),
        (0.005, 0.0, 10_000),
        (0.02, 0.02, 200),
        (0.3, 0.2, 50),
    ],
)
def test_the_interval_covers_the_difference_in_95_percent(only_first, only_second, images):
    """Draws test sets with these chances that only the one or the other network is right."""
    chances = [only_first, only_second, 1 - only_first - only_second]
    draws = numpy.random.default_rng(0).multinomial(images, chances, 10_000)
    counts, repeats = numpy.unique(draws[:, :2], axis=0, return_counts=True)
    low, high = numpy.array([tango_interval(*pair, images) for pair in counts.tolist()]).T
    difference = only_first - only_second
    covered = repeats[(low <= difference) & (difference <= high)].sum() / repeats.sum()
    assert covered > 0.935
    assert covered < 0.965


def test_holm():
    corrected = holm([0.01, 0.04, 0.03, 0.005])
    assert corrected == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Wikipedia's example
    assert holm([None, 0.7, None, 0.6]) == [None, 1, None, 1]
    assert holm([]) == []


@pytest.mark.parametrize("test", [paired_t_test, welch_t_test])
def test_one_false_alarm_in_twenty(test):
    """For seeds of one setting, p is below 0.05 in 5 % of the comparisons."""
    draws = numpy.random.default_rng(0).normal(0.85, 0.01, (2000, 2, 5)).tolist()
    alarms = sum(test(first, second).p < 0.05 for first, second in draws) / len(draws)
    assert alarms > 0.03
    assert alarms < 0.07
