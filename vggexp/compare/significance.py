"""Means, confidence intervals and significance tests for a few numbers. Pure functions, no torch.

Intervals are of 95 %, tests are two-sided. If the values are too few or show no spread, a test has
nothing to work with. Its p and its interval are then None. Accuracies are multiples of 1/images,
so two seeds may agree to the last digit by chance.

The distribution functions come from scipy.special: Student's t (stdtr, stdtrit), the binomial
(bdtr) and the beta distribution (betaincinv). scipy.stats has whole tests, but its import takes
three times as long (2.3-2.8 s against 0.8 s, scipy 1.17, two busy cores), and a test of values
without spread returns NaN there. The tests check every function against scipy.stats.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import bdtr, betaincinv, stdtr, stdtrit

from vggexp.runs.repeats import mean_and_std

ALPHA = 0.05  # level of the tests; the intervals cover 1 - ALPHA
REL_TOL = 1e-12  # a spread below this fraction of the values is rounding

Interval = tuple[float, float]


class MeanEstimate(NamedTuple):
    """Mean of n values, their sample standard deviation, and Student's interval of the mean."""

    n: int
    mean: float
    std: float | None
    interval: Interval | None


class TestResult(NamedTuple):
    """Difference of two means, first minus second, with its interval and p."""

    value: float
    interval: Interval | None
    p: float | None


def estimate_mean(values: Sequence[float]) -> MeanEstimate:
    """Estimates the mean of at least one value."""
    n = len(values)
    mean, std = mean_and_std(values)
    interval = None
    if std is not None and std > REL_TOL * _largest(values):
        interval = _t_interval(mean, std / sqrt(n), n - 1)
    return MeanEstimate(n, mean, std, interval)


def paired_t_test(first: Sequence[float], second: Sequence[float]) -> TestResult:
    """Student's t-test of the paired differences.

    Args:
        first: One value for each seed.
        second: The values of the same seeds in the same order.
    """
    differences = [a - b for a, b in zip(first, second, strict=True)]
    n = len(differences)
    if n == 1:
        return TestResult(differences[0], None, None)
    error = stdev(differences) / sqrt(n)
    return _t_test(fmean(differences), error, n - 1, _largest([*first, *second]))


def welch_t_test(first: Sequence[float], second: Sequence[float]) -> TestResult:
    """Welch's t-test, for samples that are not paired and may differ in spread."""
    value = fmean(first) - fmean(second)
    if min(len(first), len(second)) == 1:
        return TestResult(value, None, None)
    first_variance = stdev(first) ** 2 / len(first)  # of the mean
    second_variance = stdev(second) ** 2 / len(second)
    variance = first_variance + second_variance
    divisor = first_variance**2 / (len(first) - 1) + second_variance**2 / (len(second) - 1)
    freedom = variance**2 / divisor if divisor else 1  # Welch-Satterthwaite equation
    return _t_test(value, sqrt(variance), freedom, _largest([*first, *second]))


def _t_test(value: float, error: float, freedom: float, largest: float) -> TestResult:
    """Tests `value` against 0.

    Args:
        error: Standard error of `value`.
        freedom: Degrees of freedom.
        largest: Largest absolute value in the samples, the scale for rounding errors.
    """
    if error <= REL_TOL * largest:
        return TestResult(value, None, None)
    p = float(2 * stdtr(freedom, -abs(value) / error))
    return TestResult(value, _t_interval(value, error, freedom), p)


def _t_interval(value: float, error: float, freedom: float) -> Interval:
    half = float(stdtrit(freedom, 1 - ALPHA / 2)) * error
    return value - half, value + half


def _largest(values: Sequence[float]) -> float:
    return max(map(abs, values))


def mcnemar(only_first: int, only_second: int) -> float:
    """Returns p of McNemar's exact test.

    Args:
        only_first: Number of images that only the first classifies correctly.
        only_second: Number of images that only the second classifies correctly.
    """
    p = 2 * float(bdtr(min(only_first, only_second), only_first + only_second, 0.5))
    return min(1.0, p)


def mcnemar_interval(only_first: int, only_second: int, images: int) -> Interval:
    """Returns the interval of the difference in accuracy on `images` images.

    The number of images on which the two disagree is taken as given. The share of the first among
    those images has Clopper and Pearson's exact interval. So this interval excludes 0 exactly if
    `mcnemar` is below ALPHA.
    """
    low = 0.0
    high = 1.0
    if only_first:
        low = float(betaincinv(only_first, only_second + 1, ALPHA / 2))
    if only_second:
        high = float(betaincinv(only_first + 1, only_second, 1 - ALPHA / 2))
    disagreement = (only_first + only_second) / images
    return (2 * low - 1) * disagreement, (2 * high - 1) * disagreement


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Corrects p values for being several (Holm 1979); None stays None.

    The chance of one false alarm among all of the tests stays below ALPHA.
    """
    ordered = sorted((p, index) for index, p in enumerate(ps) if p is not None)
    corrected: list[float | None] = [None] * len(ps)
    previous = 0.0  # corrected values never fall along the order
    for rank, (p, index) in enumerate(ordered):
        previous = max(previous, min(1.0, p * (len(ordered) - rank)))
        corrected[index] = previous
    return corrected
