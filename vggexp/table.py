"""The table at the end of a sweep: best first, what did not finish last; repeats with their mean and spread."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggexp import seeds
from vggexp.errors import ResourceError
from vggexp.files import replace
from vggexp.rundir import result_of
from vggexp.runs import state_of
from vggexp.scores import rank
from vggexp.seeds import Row
from vggexp.sinks.console import clipped
from vggexp.tabular import csv_text, markdown

METRICS = ("val/accuracy", "val/loss", "test/accuracy")
SHORT = 60  # characters of an error in a table; the CSV has all of it


def sweep_table(folders: Sequence[Path], overrides: Sequence[Sequence[str]], objective: str, target: Path) -> int:
    """Prints the table, writes results.csv and results.md into `target`; returns how many jobs did not finish.

    folders, overrides: the run directory and the overrides of each job. objective: the metric of the ranking, higher
    is better unless it is a loss. Jobs that differ in their seed alone are one line of the printed table.
    """
    rows = [_row(folder, job, objective) for folder, job in zip(folders, overrides, strict=True)]
    rows.sort(key=lambda row: (row["state"] != "finished", *rank(row[objective], objective)))
    keys, metrics = swept(overrides), list(dict.fromkeys((objective, *METRICS)))
    columns = [*keys, *metrics, "seconds", "state", *["error"] * any(row["error"] for row in rows), "run"]
    shown = [row | {"error": clipped(str(row["error"]), SHORT)} for row in rows]
    single = markdown(columns, [[_shown(row.get(column)) for column in columns] for row in shown])
    repeated = repeats_table(rows, keys, metrics, objective)
    print("\n".join(repeated or single))
    exact = csv_text(columns, [[row.get(column) for column in columns] for row in rows])
    _write(target / "results.md", "\n".join([*repeated, *[""] * bool(repeated), *single, ""]))
    _write(target / "results.csv", exact)
    return sum(row["state"] != "finished" for row in rows)


def _write(path: Path, text: str) -> None:
    """Raises ResourceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, text.encode())
    except (FileExistsError, FileNotFoundError):
        return  # another controller of this sweep is writing the same
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error


def repeats_table(rows: Sequence[Row], keys: Sequence[str], metrics: Sequence[str], objective: str) -> list[str]:
    """A line for each set of jobs that differ in their seed alone; empty where there is no such set."""
    groups = seeds.means(rows, keys, metrics, objective) if "seed" in keys else []
    if not groups:
        return []
    others = [key for key in keys if key != "seed"]
    columns = [*others, "n", *(f"{metric} mean ± sd" for metric in metrics), "not finished"]
    return markdown(columns, [
        [*(_shown(row[key]) for key in others), str(row["runs"]),
         *(_mean_and_spread(row, metric) for metric in metrics), str(row["not finished"])]
        for row in groups
    ])  # fmt: skip


def _mean_and_spread(row: Row, metric: str) -> str:
    deviation = row[f"{metric} deviation"]
    return _shown(row[f"{metric} mean"]) + ("" if deviation is None else f" ± {deviation:.4f}")


def repeats(folders: Sequence[Path], overrides: Sequence[Sequence[str]]) -> dict[str, list[Path]]:
    """The run directories of each setting, under what is swept besides the seed; empty where nothing is repeated."""
    keys = [key for key in swept(overrides) if key != "seed"]
    rows = [job_values(job) | {"folder": folder} for folder, job in zip(folders, overrides, strict=True)]
    return {
        ",".join(f"{key}={members[0].get(key)}" for key in keys) or "all": [row["folder"] for row in members]
        for members in seeds.repeats(rows, keys)
    }


def _row(folder: Path, job: Sequence[str], objective: str) -> Row:
    result = result_of(folder)
    finished = result.get("state") == "finished"
    measured = {name: result.get(name) if finished else None for name in (objective, *METRICS, "seconds")}
    state = state_of(folder, result)
    return {**job_values(job), **measured, "state": state, "error": result.get("error") or "", "run": folder.name}


def swept(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys that differ between jobs, in the order of the command."""
    jobs = [job_values(job) for job in overrides]
    keys = dict.fromkeys(key for job in jobs for key in job)
    return [key for key in keys if len({job.get(key) for job in jobs}) > 1]


def job_values(overrides: Sequence[str]) -> dict[str, str]:
    return dict(word.lstrip("+").partition("=")[::2] for word in overrides)


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
