"""Rows of a table that differ in their seed alone: which they are, and their mean scores."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from vggexp.formatting import format_value


def higher_is_better(metric: str) -> bool:
    """Of an accuracy; of everything else, as a loss, the lowest is best."""
    return metric.endswith("accuracy")


def rank_key(score: float | None, metric: str) -> tuple[bool, float]:
    """A key for sorting: the best first, what has no score last."""
    return score is None, (-1 if higher_is_better(metric) else 1) * (score or 0)


def mean_and_std(scores: Sequence[float]) -> tuple[float, float | None]:
    """Mean, and standard deviation of the sample, of one score at least; one alone has no deviation."""
    return fmean(scores), stdev(scores) if len(scores) > 1 else None


Row = dict[str, Any]  # of a run: its settings, `state`, and a score or None for each metric
Setting = tuple[str | None, ...]


def group_repeats(rows: Iterable[Row], keys: Sequence[str]) -> list[list[Row]]:
    """The rows of each setting, told by the keys besides `seed`; empty where no setting has several."""
    sets: dict[Setting, list[Row]] = {}
    for row in rows:
        sets.setdefault(_setting(row, keys), []).append(row)
    several = any(len(members) > 1 for members in sets.values())
    return list(sets.values()) if several else []


def _setting(row: Mapping[str, Any], keys: Sequence[str]) -> Setting:
    return tuple(
        None if row.get(key) is None else format_value(row[key]) for key in keys if key != "seed"
    )


def mean_rows(
    rows: Iterable[Row], keys: Sequence[str], metrics: Sequence[str], score: str
) -> list[Row]:
    """A row for each setting, best mean first; none where nothing is repeated.

    Means and sample standard deviations of the finished runs; `runs` counts those, `not finished` the others.
    """
    settings = [key for key in keys if key != "seed"]
    sets = group_repeats(rows, settings)
    found = [
        {key: members[0].get(key) for key in settings} | _means(members, metrics)
        for members in sets
    ]
    return sorted(found, key=lambda row: rank_key(row[f"{score} mean"], score))


def _means(members: Sequence[Row], metrics: Sequence[str]) -> Row:
    finished = [row for row in members if row["state"] == "finished"]
    found: Row = {}
    for metric in metrics:
        scores = [row[metric] for row in finished if row[metric] is not None]
        found[f"{metric} mean"], found[f"{metric} deviation"] = (
            mean_and_std(scores) if scores else (None, None)
        )
    return {**found, "runs": len(finished), "not finished": len(members) - len(finished)}
