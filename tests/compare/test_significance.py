"""Every interval and test against scipy.stats, which is slower to import but not ours."""

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vggexp.compare.significance import (
    estimate_mean,
    holm,
    mcnemar,
    mcnemar_interval,
    paired_t_test,
    welch_t_test,
)

accuracies = st.integers(0, 10_000).map(lambda right: right / 10_000)
samples = st.lists(accuracies, min_size=2, max_size=12).filter(lambda values: len(set(values)) > 1)
close = {"rel": 1e-6, "abs": 1e-12}


def matches(found, reference):
    assert found.p == pytest.approx(reference.pvalue, **close)
    assert found.interval == pytest.approx(tuple(reference.confidence_interval(0.95)), **close)


@given(samples)
def test_mean(values):
    found = estimate_mean(values)
    interval = stats.t.interval(0.95, len(values) - 1, numpy.mean(values), stats.sem(values))
    assert (found.n, found.mean) == (len(values), pytest.approx(numpy.mean(values)))
    assert found.deviation == pytest.approx(numpy.std(values, ddof=1))
    assert found.interval == pytest.approx(interval, **close)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=12))
def test_paired(rows):
    first, second = zip(*rows, strict=True)
    if len({round(a - b, 9) for a, b in rows}) > 1:
        matches(paired_t_test(first, second), stats.ttest_rel(first, second))
    else:
        assert paired_t_test(first, second).p is None


@given(samples, samples)
def test_welch(first, second):
    matches(welch_t_test(first, second), stats.ttest_ind(first, second, equal_var=False))


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_one_sample_without_spread():
    matches(
        welch_t_test([0.5, 0.5], [0.25, 0.375]),
        stats.ttest_ind([0.5, 0.5], [0.25, 0.375], equal_var=False),
    )


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
def test_mcnemar(first, second):
    if first + second == 0:
        assert (mcnemar(0, 0), mcnemar_interval(0, 0, 10)) == (1, (0, 0))
        return
    reference = stats.binomtest(first, first + second)
    assert mcnemar(first, second) == pytest.approx(reference.pvalue, **close)
    share = numpy.array(reference.proportion_ci(0.95, "exact"))
    low, high = mcnemar_interval(first, second, 1000)
    assert (low, high) == pytest.approx(tuple((2 * share - 1) * (first + second) / 1000), **close)
    assert (low > 0 or high < 0) == (mcnemar(first, second) < 0.05)


def test_holm():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, 0.02]
    )  # Wikipedia's example
    assert holm([None, 0.7, None, 0.6]) == [None, 1, None, 1]
    assert holm([]) == []


@pytest.mark.parametrize("test", [paired_t_test, welch_t_test])
def test_one_false_alarm_in_twenty(test):
    """Seeds of one and the same setting: p < 0.05 in 5 % of the comparisons."""
    draws = numpy.random.default_rng(0).normal(0.85, 0.01, (2000, 2, 5)).tolist()
    alarms = sum(test(first, second).p < 0.05 for first, second in draws) / len(draws)
    assert 0.03 < alarms < 0.07
