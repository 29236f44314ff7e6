"""Means, intervals and tests of a few numbers: what a difference between runs is worth. Pure functions, no torch.

Intervals are of 95 %, tests two-sided. Where a test has nothing to go by (one value, or values without any spread) its
p and its interval are None: accuracies are steps of 1/images, so two seeds may agree by chance to the last digit.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import bdtr, betaincinv, stdtr, stdtrit

from vggexp.runs.repeats import mean_and_std

ALPHA = 0.05  # of the 95 % intervals, and the level of the tests
REL_TOL = 1e-12  # a spread below this share of the values is rounding

Interval = tuple[float, float]


class MeanEstimate(NamedTuple):
    """n values: their mean, sample standard deviation and Student's interval of the mean."""

    n: int
    mean: float
    deviation: float | None
    interval: Interval | None


class TestResult(NamedTuple):
    """Of two means, first minus second."""

    value: float
    interval: Interval | None
    p: float | None


def estimate_mean(values: Sequence[float]) -> MeanEstimate:
    """values: one at least."""
    n, (middle, deviation) = len(values), mean_and_std(values)
    if deviation is None or deviation <= REL_TOL * max(map(abs, values)):
        return MeanEstimate(n, middle, deviation, None)
    return MeanEstimate(n, middle, deviation, _t_interval(middle, deviation / sqrt(n), n - 1))


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> TestResult:
    """Student's t-test of the differences. first, second: values of the same seeds in the same order."""
    each = [a - b for a, b in zip(first, second, strict=True)]
    if len(each) == 1:
        return TestResult(each[0], None, None)
    return _tested(
        fmean(each), stdev(each) / sqrt(len(each)), len(each) - 1, max(map(abs, (*first, *second)))
    )


def welch_t_test(first: Sequence[float], second: Sequence[float]) -> TestResult:
    """Welch's t-test, for samples that are not paired and may differ in spread."""
    value = fmean(first) - fmean(second)
    if min(len(first), len(second)) == 1:
        return TestResult(value, None, None)
    one, other = (stdev(values) ** 2 / len(values) for values in (first, second))
    weights = one**2 / (len(first) - 1) + other**2 / (len(second) - 1)
    freedom = (one + other) ** 2 / weights if weights else 1  # Welch-Satterthwaite
    return _tested(value, sqrt(one + other), freedom, max(map(abs, (*first, *second))))


def _tested(value: float, error: float, freedom: float, largest: float) -> TestResult:
    if error <= REL_TOL * largest:
        return TestResult(value, None, None)
    return TestResult(
        value, _t_interval(value, error, freedom), float(2 * stdtr(freedom, -abs(value) / error))
    )


def _t_interval(value: float, error: float, freedom: float) -> Interval:
    half = float(stdtrit(freedom, 1 - ALPHA / 2)) * error
    return value - half, value + half


def mcnemar(first: int, second: int) -> float:
    """p of McNemar's exact test. first, second: how many images only the one, and only the other, gets right."""
    return min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))


def mcnemar_interval(first: int, second: int, images: int) -> Interval:
    """Of the difference in accuracy on `images` images, given how many the two disagree on; it agrees with `mcnemar`.

    Clopper and Pearson's exact interval of the first's share of them.
    """
    low = float(betaincinv(first, second + 1, ALPHA / 2)) if first else 0.0
    high = float(betaincinv(first + 1, second, 1 - ALPHA / 2)) if second else 1.0
    disagreed = (first + second) / images
    return (2 * low - 1) * disagreed, (2 * high - 1) * disagreed


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """The same p, corrected for being several (Holm 1979): the chance of one false alarm among them stays below 5 %."""
    order = sorted((p, place) for place, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    least = 0.0
    for rank, (p, place) in enumerate(order):
        corrected[place] = least = max(least, min(1.0, p * (len(order) - rank)))
    return corrected
