"""The table at the end of a sweep: best first, what did not finish last."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggexp.rundir import result_of

COLUMNS = ("val/accuracy", "val/loss", "test/accuracy", "seconds", "state")


def sweep_table(folders: Sequence[Path], overrides: Sequence[Sequence[str]], objective: str, target: Path) -> int:
    """Prints the table, writes results.csv and results.md into `target`; returns how many jobs did not finish.

    folders, overrides: the run directory and the overrides of each job. objective: the metric of the ranking, higher
    is better unless it is a loss.
    """
    rows = [_row(folder, job, objective) for folder, job in zip(folders, overrides, strict=True)]
    sign = -1 if objective.endswith("accuracy") else 1
    rows.sort(key=lambda row: (row["state"] != "finished", row[objective] is None, sign * (row[objective] or 0)))
    swept = _swept(overrides)
    columns = [*swept, *dict.fromkeys((objective, *COLUMNS)), "run"]
    cells = [[_shown(row.get(column)) for column in columns] for row in rows]
    lines = markdown(columns, cells)
    print("\n".join(lines))
    target.mkdir(parents=True, exist_ok=True)
    (target / "results.md").write_text("\n".join(lines) + "\n", "utf-8")
    with open(target / "results.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *([row.get(column) for column in columns] for row in rows)])
    return sum(row["state"] != "finished" for row in rows)


def _row(folder: Path, job: Sequence[str], objective: str) -> dict[str, Any]:
    values = dict(word.lstrip("+").partition("=")[::2] for word in job)
    result = result_of(folder)
    finished = result.get("state") == "finished"
    metrics = {name: result.get(name) if finished else None for name in (objective, *COLUMNS[:-1])}
    return {**values, **metrics, "state": result.get("state", "not started"), "run": folder.name}


def _swept(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys that differ between jobs, in the order of the command."""
    jobs = [dict(word.lstrip("+").partition("=")[::2] for word in job) for job in overrides]
    return [key for key in jobs[0] if len({job.get(key) for job in jobs}) > 1]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """An aligned Markdown table."""
    widths = [max(len(row[index]) for row in [columns, *cells]) for index in range(len(columns))]
    line = "| " + " | ".join(f"{{:<{width}}}" for width in widths) + " |"
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line.format(*columns), rule, *(line.format(*row) for row in cells)]
