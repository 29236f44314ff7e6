"""Scores of several runs: which is the better one, and the mean and spread of repeats. Plain values, no torch."""

from collections.abc import Sequence
from statistics import fmean, stdev


def higher_is_better(metric: str) -> bool:
    """Of an accuracy; of everything else, as a loss, the lowest is best."""
    return metric.endswith("accuracy")


def rank(score: float | None, metric: str) -> tuple[bool, float]:
    """A key for sorting: the best first, what has no score last."""
    return score is None, (-1 if higher_is_better(metric) else 1) * (score or 0)


def spread(scores: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample, of one score at least; one alone has no deviation."""
    return fmean(scores), stdev(scores) if len(scores) > 1 else None
