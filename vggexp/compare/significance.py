"""Means, confidence intervals and significance tests for a few numbers. Pure functions, no torch.

Intervals are of 95 %, tests are two-sided. If the values are too few or show no spread, a test has
nothing to work with. Its p and its interval are then None. Accuracies are multiples of 1/images,
so two seeds may agree to the last digit by chance.

The distribution functions come from scipy.special: Student's t (stdtr, stdtrit), the binomial
(bdtr) and the normal distribution (ndtri). scipy.stats has whole tests, but its import takes
three times as long (2.3-2.8 s against 0.8 s, scipy 1.17, two busy cores), and a test of values
without spread returns NaN there. The tests check every function that scipy.stats has against it.
"""

from collections.abc import Sequence
from math import sqrt
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import bdtr, ndtri, stdtr, stdtrit

from vggexp.runs.repeats import mean_and_std

ALPHA = 0.05  # level of the tests; the intervals cover 1 - ALPHA
QUANTILE = float(ndtri(1 - ALPHA / 2))  # of the normal distribution: 1.96
HALVINGS = 60  # of an interval of length 2, to the last digit
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


def tango_interval(only_first: int, only_second: int, images: int) -> Interval:
    """Returns the score interval of the difference in accuracy on `images` images.

    It covers the true difference in close to 95 % of test sets, also if one count is 0. At p near
    ALPHA it may exclude 0 while `mcnemar`, which is exact and therefore careful, does not.

    Source: Tango 1998, Statistics in Medicine 17:891, equations 13 to 15.
    """
    low = _lower_limit(only_first, only_second, images)
    high = -_lower_limit(only_second, only_first, images)
    return low, high


def _lower_limit(only_first: int, only_second: int, images: int) -> float:
    """Returns the smallest difference that the counts do not reject, by bisection."""
    low = -1.0
    high = (only_first - only_second) / images
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        excess = only_first - only_second - images * middle
        if excess > QUANTILE * _score_error(middle, only_first, only_second, images):
            low = middle
        else:
            high = middle
    return low


def _score_error(difference: float, only_first: int, only_second: int, images: int) -> float:
    """Returns the standard error of only_first - only_second if `difference` is the true one.

    The share of the images that only the second classifies correctly is the one of the greatest
    likelihood, a root of a quadratic equation.
    """
    square = 2 * images
    linear = (2 * images - only_first + only_second) * difference - only_first - only_second
    constant = -only_second * difference * (1 - difference)
    root = sqrt(max(0.0, linear**2 - 4 * square * constant))
    share = (root - linear) / (2 * square)
    return sqrt(max(0.0, images * (2 * share + difference * (1 - difference))))


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
