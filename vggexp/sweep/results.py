"""Prints and writes the table of a sweep.

The best job is first, jobs that did not finish are last. Repeats have their mean and std.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vggexp.config.overrides import parse_override, typed_values
from vggexp.errors import ResourceError
from vggexp.formatting import csv_table, markdown_table, shorten
from vggexp.runs.directory import read_result
from vggexp.runs.records import run_state
from vggexp.runs.repeats import Row, group_repeats, mean_rows, rank_key
from vggexp.system.files import atomic_write

Job = Sequence[str]  # the overrides of a job

METRICS = ("val/accuracy", "val/loss", "test/accuracy")
MAX_ERROR_CHARS = 60  # of an error in a Markdown table; the CSV file has the complete error


def write_sweep_table(
    folders: Sequence[Path],
    overrides: Sequence[Job],
    objective: str,
    target: Path,
) -> int:
    """Prints the table and writes results.csv and results.md.

    Args:
        folders: the run directory of each job.
        overrides: the overrides of each job. Jobs that differ only in their seed are one line
            of the printed table.
        objective: the metric of the ranking.
        target: the folder of the sweep.

    Returns:
        How many jobs did not finish.

    Raises:
        ResourceError: a file cannot be written.
    """
    finished = []
    unfinished = []
    for folder, job in zip(folders, overrides, strict=True):
        row = _job_row(folder, job, objective)
        if row["state"] == "finished":
            finished.append(row)
        else:
            unfinished.append(row)
    rows = [
        *_rank(finished, objective),
        *_rank(unfinished, objective),
    ]
    keys = swept_keys(overrides)
    metrics = list(dict.fromkeys((objective, *METRICS)))
    columns = [*keys, *metrics, "seconds", "state"]
    if any(row["error"] for row in rows):
        columns.append("error")
    columns.append("run")
    lines = _jobs_table(rows, columns)
    exact = []
    for row in rows:
        exact.append([row.get(column) for column in columns])
    repeats = repeats_table(rows, keys, metrics, objective)
    all_lines = [*repeats, "", *lines] if repeats else lines
    # The files come first: the terminal may be gone.
    _write(target / "results.csv", csv_table(columns, exact))
    _write(target / "results.md", "\n".join(all_lines) + "\n")
    print("\n".join(repeats or lines))
    return len(unfinished)


def _rank(rows: Sequence[Row], objective: str) -> list[Row]:
    """Sorts rows by the objective, the best first; rows without a value are last."""
    return sorted(
        rows,
        key=lambda row: rank_key(row[objective], objective),
    )


def _job_row(folder: Path, job: Job, objective: str) -> Row:
    result = read_result(folder)
    row: Row = dict(parse_job(job))
    is_finished = result.get("state") == "finished"
    for name in (objective, *METRICS, "seconds"):
        row[name] = None
        if is_finished:
            row[name] = result.get(name)
    row["state"] = run_state(folder, result)
    row["error"] = result.get("error") or ""
    row["run"] = folder.name
    return row


def _jobs_table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    cells = []
    for row in rows:
        shown = dict(row)
        shown["error"] = shorten(str(row["error"]), MAX_ERROR_CHARS)
        cells.append([_format_cell(shown.get(column)) for column in columns])
    return markdown_table(columns, cells)


def repeats_table(
    rows: Sequence[Row],
    keys: Sequence[str],
    metrics: Sequence[str],
    objective: str,
) -> list[str]:
    """Returns a table with a line for each set of jobs that differ only in their seed.

    Args:
        rows: a row for each job.
        keys: the swept keys.
        metrics: the metrics with a column.
        objective: the metric of the ranking.

    Returns:
        The lines; empty if no two jobs differ only in their seed.
    """
    if "seed" not in keys:
        return []
    groups = mean_rows(rows, keys, metrics, objective)
    if not groups:
        return []
    settings = [key for key in keys if key != "seed"]
    means = [f"{metric} mean ± sd" for metric in metrics]
    columns = [*settings, "n", *means, "not finished"]
    cells = []
    for row in groups:
        line = [_format_cell(row[key]) for key in settings]
        line.append(str(row["runs"]))
        line += [_mean_and_std(row, metric) for metric in metrics]
        line.append(str(row["not finished"]))
        cells.append(line)
    return markdown_table(columns, cells)


def _mean_and_std(row: Row, metric: str) -> str:
    mean = _format_cell(row[f"{metric} mean"])
    std = row[f"{metric} deviation"]
    if std is None:
        return mean
    return f"{mean} ± {std:.4f}"


def repeat_folders(
    folders: Sequence[Path],
    overrides: Sequence[Job],
) -> dict[str, list[Path]]:
    """Returns the run directories of each setting, by a label of the swept keys except `seed`.

    Empty if no setting is repeated.
    """
    keys = swept_keys(overrides)
    if "seed" in keys:
        keys.remove("seed")
    rows = []
    for folder, job in zip(folders, overrides, strict=True):
        row: Row = dict(parse_job(job))
        row["folder"] = folder
        rows.append(row)
    by_label = {}
    for members in group_repeats(rows, keys):
        first = members[0]
        label = ",".join(f"{key}={first.get(key)}" for key in keys)
        by_label[label or "all"] = [row["folder"] for row in members]
    return by_label


def swept_keys(overrides: Sequence[Job]) -> list[str]:
    """Returns the keys that differ between jobs, in the order of the command."""
    jobs = [parse_job(job) for job in overrides]
    keys: dict[str, None] = {}  # an ordered set
    for job in jobs:
        keys |= dict.fromkeys(job)
    swept = []
    for key in keys:
        values = {job.get(key) for job in jobs}
        if len(values) > 1:
            swept.append(key)
    return swept


def parse_job(overrides: Job) -> dict[str, str]:
    """Returns the values of a job by key, as typed."""
    return typed_values(map(parse_override, overrides))


def _format_cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    """Writes a file. Raises ResourceError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, text.encode())
    except (FileExistsError, FileNotFoundError):
        return  # another controller of this sweep is writing the same file
    except OSError as error:
        raise ResourceError(f"{path}: cannot be written: {error.strerror}") from error
