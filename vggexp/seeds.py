"""Rows of a table that differ in their seed alone: which they are, and their mean scores."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vggexp.config.read import shown
from vggexp.scores import rank, spread

Row = dict[str, Any]  # of a run: its settings, `state`, and a score or None for each metric
Setting = tuple[str | None, ...]


def repeats(rows: Iterable[Row], keys: Sequence[str]) -> list[list[Row]]:
    """The rows of each setting, told by the keys besides `seed`; empty where no setting has several."""
    sets: dict[Setting, list[Row]] = {}
    for row in rows:
        sets.setdefault(_setting(row, keys), []).append(row)
    several = any(len(members) > 1 for members in sets.values())
    return list(sets.values()) if several else []


def _setting(row: Mapping[str, Any], keys: Sequence[str]) -> Setting:
    return tuple(None if row.get(key) is None else shown(row[key]) for key in keys if key != "seed")


def means(rows: Iterable[Row], keys: Sequence[str], metrics: Sequence[str], score: str) -> list[Row]:
    """A row for each setting, best mean first; none where nothing is repeated.

    Means and sample standard deviations of the finished runs; `runs` counts those, `not finished` the others.
    """
    settings = [key for key in keys if key != "seed"]
    sets = repeats(rows, settings)
    found = [{key: members[0].get(key) for key in settings} | _means(members, metrics) for members in sets]
    return sorted(found, key=lambda row: rank(row[f"{score} mean"], score))


def _means(members: Sequence[Row], metrics: Sequence[str]) -> Row:
    finished = [row for row in members if row["state"] == "finished"]
    found: Row = {}
    for metric in metrics:
        scores = [row[metric] for row in finished if row[metric] is not None]
        found[f"{metric} mean"], found[f"{metric} deviation"] = spread(scores) if scores else (None, None)
    return {**found, "runs": len(finished), "not finished": len(members) - len(finished)}
