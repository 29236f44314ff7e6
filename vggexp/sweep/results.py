"""The table at the end of a sweep: best first, what did not finish last; repeats with their mean and spread."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggexp.errors import ResourceError
from vggexp.formatting import csv_table, markdown_table, shorten
from vggexp.runs.directory import read_result
from vggexp.runs.records import run_state
from vggexp.runs.repeats import Row, group_repeats, mean_rows, rank_key
from vggexp.system.files import atomic_write

METRICS = ("val/accuracy", "val/loss", "test/accuracy")
MAX_ERROR_CHARS = 60  # characters of an error in a table; the CSV has all of it


def write_sweep_table(
    folders: Sequence[Path], overrides: Sequence[Sequence[str]], objective: str, target: Path
) -> int:
    """Prints the table, writes results.csv and results.md into `target`; returns how many jobs did not finish.

    folders, overrides: the run directory and the overrides of each job. objective: the metric of the ranking, higher
    is better unless it is a loss. Jobs that differ in their seed alone are one line of the printed table.
    """
    rows = [_row(folder, job, objective) for folder, job in zip(folders, overrides, strict=True)]
    rows.sort(key=lambda row: (row["state"] != "finished", *rank_key(row[objective], objective)))
    keys = swept_keys(overrides)
    metrics = list(dict.fromkeys((objective, *METRICS)))
    columns = [
        *keys,
        *metrics,
        "seconds",
        "state",
        *["error"] * any(row["error"] for row in rows),
        "run",
    ]
    shown = [row | {"error": shorten(str(row["error"]), MAX_ERROR_CHARS)} for row in rows]
    single = markdown_table(
        columns, [[_format_cell(row.get(column)) for column in columns] for row in shown]
    )
    repeated = repeats_table(rows, keys, metrics, objective)
    print("\n".join(repeated or single))
    exact = csv_table(columns, [[row.get(column) for column in columns] for row in rows])
    _write(target / "results.md", "\n".join([*repeated, *[""] * bool(repeated), *single, ""]))
    _write(target / "results.csv", exact)
    return sum(row["state"] != "finished" for row in rows)


def _write(path: Path, text: str) -> None:
    """Raises ResourceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
    except (FileExistsError, FileNotFoundError):
        return  # another controller of this sweep is writing the same
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error


def repeats_table(
    rows: Sequence[Row], keys: Sequence[str], metrics: Sequence[str], objective: str
) -> list[str]:
    """A line for each set of jobs that differ in their seed alone; empty where there is no such set."""
    groups = mean_rows(rows, keys, metrics, objective) if "seed" in keys else []
    if not groups:
        return []
    others = [key for key in keys if key != "seed"]
    columns = [*others, "n", *(f"{metric} mean ± sd" for metric in metrics), "not finished"]
    return markdown_table(
        columns,
        [
            [
                *(_format_cell(row[key]) for key in others),
                str(row["runs"]),
                *(_mean_and_spread(row, metric) for metric in metrics),
                str(row["not finished"]),
            ]
            for row in groups
        ],
    )


def _mean_and_spread(row: Row, metric: str) -> str:
    deviation = row[f"{metric} deviation"]
    return _format_cell(row[f"{metric} mean"]) + (
        "" if deviation is None else f" ± {deviation:.4f}"
    )


def repeat_folders(
    folders: Sequence[Path], overrides: Sequence[Sequence[str]]
) -> dict[str, list[Path]]:
    """The run directories of each setting, under what is swept besides the seed; empty where nothing is repeated."""
    keys = [key for key in swept_keys(overrides) if key != "seed"]
    rows = [
        parse_job(job) | {"folder": folder} for folder, job in zip(folders, overrides, strict=True)
    ]
    return {
        ",".join(f"{key}={members[0].get(key)}" for key in keys) or "all": [
            row["folder"] for row in members
        ]
        for members in group_repeats(rows, keys)
    }


def _row(folder: Path, job: Sequence[str], objective: str) -> Row:
    result = read_result(folder)
    finished = result.get("state") == "finished"
    measured = {
        name: result.get(name) if finished else None for name in (objective, *METRICS, "seconds")
    }
    state = run_state(folder, result)
    return {
        **parse_job(job),
        **measured,
        "state": state,
        "error": result.get("error") or "",
        "run": folder.name,
    }


def swept_keys(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys that differ between jobs, in the order of the command."""
    jobs = [parse_job(job) for job in overrides]
    keys = dict.fromkeys(key for job in jobs for key in job)
    return [key for key in keys if len({job.get(key) for job in jobs}) > 1]


def parse_job(overrides: Sequence[str]) -> dict[str, str]:
    return dict(word.lstrip("+").partition("=")[::2] for word in overrides)


def _format_cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)
