"""Groups runs that differ only in their seed; ranks runs; means and standard deviations."""

from collections.abc import Iterable, Mapping, Sequence
from math import inf
from statistics import fmean, stdev
from typing import Any

from vggexp.formatting import format_value

# A row of a table: the settings of a run, its `state`, and a number or None for each metric.
Row = dict[str, Any]
STOPPED = "stopped at epoch"  # a column of the means, if sweep.halving or run.until stopped runs
Setting = tuple[str | None, ...]


def higher_is_better(metric: str) -> bool:
    """Returns True for an accuracy; the lowest loss is the best."""
    return metric.endswith("accuracy")


def rank_key(
    score: float | None,
    metric: str,
) -> tuple[bool, float]:
    """Returns a key for `sorted`: the best score first, None last."""
    if score is None:
        return True, 0
    return False, -score if higher_is_better(metric) else score


def mean_and_std(scores: Sequence[float]) -> tuple[float, float | None]:
    """Returns mean and sample standard deviation of at least one score.

    The standard deviation of a single score is None.
    """
    std = stdev(scores) if len(scores) > 1 else None
    return fmean(scores), std


def group_repeats(
    rows: Iterable[Row],
    keys: Sequence[str],
) -> list[list[Row]]:
    """Groups the rows by their values of all keys except `seed`.

    Returns [] if no group has several rows.
    """
    groups: dict[Setting, list[Row]] = {}
    for row in rows:
        groups.setdefault(_setting(row, keys), []).append(row)
    if all(len(members) == 1 for members in groups.values()):
        return []
    return list(groups.values())


def _setting(
    row: Mapping[str, Any],
    keys: Sequence[str],
) -> Setting:
    values: list[str | None] = []
    for key in keys:
        if key == "seed":
            continue
        value = row.get(key)
        if value is not None:
            value = format_value(value)
        values.append(value)
    return tuple(values)


def mean_rows(
    rows: Iterable[Row],
    keys: Sequence[str],
    metrics: Sequence[str],
    score: str,
) -> list[Row]:
    """Returns one row for each group of `group_repeats`, the best mean first.

    Each row has the mean and the sample standard deviation of each metric over the seeds of the
    finished runs. `runs` counts each seed once. Further finished runs of a seed say nothing new
    about the spread: the seed has their mean, and they are counted in `copies`, a column of tables
    with copies only. `not finished` counts the other runs.

    A setting is stopped if none of its runs has finished and some are paused. Its means are over
    the runs that are paused at the latest epoch, and STOPPED has this epoch. Stopped settings come
    after the others, and the column is in tables with stopped settings only.

    Args:
        keys: the columns that are settings.
        score: the metric that ranks the rows.
    """
    settings = [key for key in keys if key != "seed"]
    means: list[Row] = []
    for members in group_repeats(rows, settings):
        shared = {key: members[0].get(key) for key in settings}
        means.append(shared | _mean_columns(members, metrics))
    for column in (STOPPED, "copies"):
        if not any(row[column] for row in means):
            for row in means:
                del row[column]
    return sorted(means, key=lambda row: _order(row, score))


def _order(row: Row, score: str) -> tuple[bool, float, bool, float]:
    """Returns a key for `sorted`: finished settings, those stopped late and early, the others."""
    epoch = row.get(STOPPED) or inf
    return row["runs"] == 0, -epoch, *rank_key(row[f"{score} mean"], score)


def _mean_columns(
    members: Sequence[Row],
    metrics: Sequence[str],
) -> Row:
    counted = [row for row in members if row["state"] == "finished"]
    paused = [row for row in members if row["state"] == "paused"]
    stopped = None
    if paused and not counted:
        stopped = max(row["epochs"] or 0 for row in paused)
        counted = [row for row in paused if row["epochs"] == stopped]
    seeds: dict[str, list[Row]] = {}
    for row in counted:
        seeds.setdefault(format_value(row.get("seed")), []).append(row)
    columns: Row = {STOPPED: stopped}
    for metric in metrics:
        scores = []
        for copies in seeds.values():
            values = [row[metric] for row in copies if row[metric] is not None]
            if values:
                scores.append(fmean(values))
        mean = None
        std = None
        if scores:
            mean, std = mean_and_std(scores)
        columns[f"{metric} mean"] = mean
        columns[f"{metric} deviation"] = std
    columns["runs"] = len(seeds)
    columns["copies"] = len(counted) - len(seeds)
    columns["not finished"] = len(members) - len(counted)
    return columns
