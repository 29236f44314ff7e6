"""Prints and writes the table of a sweep.

The best job is first, jobs that did not finish are last. Repeats have their mean and std.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.keys import flatten, to_plain, varying_keys
from vggexp.config.overrides import parse_override, typed_values
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.errors import VggexpError
from vggexp.formatting import (
    csv_table,
    duration,
    format_metric,
    format_value,
    markdown_table,
    shorten,
)
from vggexp.loggers.console import print_text
from vggexp.runs.records import epoch_rows, missing_objective, own_result, run_state
from vggexp.runs.repeats import STOPPED, Row, group_repeats, mean_rows, rank_key
from vggexp.system.files import atomic_write, make_dir, os_error_as_resource_error

METRICS = ("val/accuracy", "val/loss", "test/accuracy")
MAX_ERROR_CHARS = 60  # of an error in a Markdown table; the CSV file has the complete error
NETWORK_KEYS = ("arch.name", "arch.blocks", "arch.norm", "arch.width")  # of a network's name
# Keys without a column of their own: a hash follows from the path that stands beside it.
HIDDEN_KEYS = ("run.", "sweep.", "resume", "data.sha256", "train.init_sha256")


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep, and where its run is."""

    overrides: Sequence[str]
    folder: Path  # the run directory
    config: Config | None  # None for a trial whose values do not fit together
    error: str = ""  # why the launcher reports the job as failed
    rung: int | None = None  # of sweep.halving, the last one that the job entered
    # The objective by the epoch of each rung up to that one; None without a score.
    rung_scores: Mapping[int, float | None] = field(default_factory=dict)


class SettingColumns(NamedTuple):
    """The settings in which the jobs of a sweep differ."""

    keys: list[str]
    values: list[dict[str, str]]  # of each job, by key


def write_sweep_table(
    jobs: Sequence[SweepJob],
    objective: str,
    target: Path,
) -> list[Row]:
    """Prints the table and writes results.csv and results.md.

    With sweep.halving, the CSV file also has the last rung of each job and its scores.

    Args:
        jobs: the jobs. Jobs that differ only in their seed are one line of the printed table.
        objective: the metric of the ranking.
        target: the folder of the sweep.

    Returns:
        The rows, one for each job. A row has a score only if the job's run has finished, or has
        all epochs up to `run.until`.

    Raises:
        ResourceError: a file cannot be written.
    """
    settings = setting_columns(
        [job.overrides for job in jobs],
        [job.config for job in jobs],
    )
    rows = []
    for job, values in zip(jobs, settings.values, strict=True):
        row = {**values, **_job_row(job, objective), "rung": job.rung}
        for epochs, score in job.rung_scores.items():
            row[_score_column(objective, epochs)] = score
        rows.append(row)
    rows.sort(key=lambda row: _order(row, objective))
    metrics = list(dict.fromkeys((objective, *METRICS)))
    columns = [*settings.keys, *metrics, "seconds", "state"]
    if any(row["error"] for row in rows):
        columns.append("error")
    columns.append("run")
    lines = _jobs_table(rows, columns)
    if any(job.rung is not None for job in jobs):
        rung_epochs = sorted({epochs for job in jobs for epochs in job.rung_scores})
        scores = [_score_column(objective, epochs) for epochs in rung_epochs]
        columns = [*columns[:-1], "rung", *scores, "run"]
    exact = []
    for row in rows:
        exact.append([row.get(column) for column in columns])
    repeats = repeats_table(rows, settings.keys, metrics, objective)
    all_lines = [*repeats, "", *lines] if repeats else lines
    # The files come first: the terminal may be gone.
    _write(target / "results.csv", csv_table(columns, exact))
    _write(target / "results.md", "\n".join(all_lines) + "\n")
    print_text("\n".join(repeats or lines))
    return rows


def _order(row: Row, objective: str) -> tuple[int, int, bool, float]:
    """Returns a key for `sorted`: finished, paused at a later and an earlier epoch, others.

    Rows of one kind are sorted by the objective, the best first; those without a value are last.
    """
    kinds = ("finished", "paused")
    kind = kinds.index(row["state"]) if row["state"] in kinds else len(kinds)
    return kind, -(row["epochs"] or 0), *rank_key(row[objective], objective)


def _score_column(objective: str, epochs: int) -> str:
    return f"{objective} at epoch {epochs}"


def _job_row(job: SweepJob, objective: str) -> Row:
    """Returns the metrics, state and error of a job."""
    error = job.error
    try:
        result = _read_result(job)
        state = run_state(job.folder, result)
    except VggexpError as problem:
        result = {}
        state = "failed"
        error = str(problem)
    paused_rows = [] if state == "finished" else _paused_rows(job)
    is_finished = state == "finished"
    if paused_rows:
        state = "paused"
        error = (
            missing_objective(paused_rows[-1], objective) if objective in paused_rows[-1] else ""
        )
        seconds = sum(row["time/epoch_seconds"] for row in paused_rows)
        result = {**paused_rows[-1], "seconds": seconds}
    elif is_finished:
        error = missing_objective(result, objective)
    elif error and state in ("not started", "paused"):  # the job ended before its run began
        state = "failed"
    elif state == "paused":  # at an earlier epoch than that of the job
        state = "interrupted"
    row: Row = {}
    for name in (objective, *METRICS, "seconds"):
        row[name] = result.get(name) if is_finished or paused_rows else None
    row["state"] = state
    row["epochs"] = len(paused_rows) or None
    row["error"] = error or result.get("error") or ""
    row["run"] = job.folder.name
    return row


def _paused_rows(job: SweepJob) -> list[Row]:
    """Returns the metrics of all epochs up to `run.until`; [] if the run does not have them."""
    until = None if job.config is None else job.config.run.until
    if job.config is None or until is None:
        return []
    rows = epoch_rows(job.config, job.folder)[:until]
    return rows if len(rows) == until else []


def _read_result(job: SweepJob) -> dict[str, Any]:
    """Returns `own_result` of a job; {} if the job has no run. Raises CheckpointError."""
    return {} if job.config is None else own_result(job.config, job.folder)


def _jobs_table(rows: Sequence[Row], columns: Sequence[str]) -> list[str]:
    cells = []
    for row in rows:
        shown = dict(row)
        shown["error"] = shorten(str(row["error"]), MAX_ERROR_CHARS)
        shown["state"] = _state_text(row)
        if row["seconds"] is not None:
            shown["seconds"] = duration(row["seconds"])
        cells.append([_format_cell(shown.get(column)) for column in columns])
    header = ["time" if column == "seconds" else column for column in columns]
    return markdown_table(header, cells)


def _state_text(row: Row) -> str:
    if row["state"] == "paused":
        return f"stopped at epoch {row['epochs']}"
    return str(row["state"])


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
    settings = [key for key in keys if key != "seed"]
    groups = mean_rows(rows, keys, metrics, objective)
    if not groups:
        return []
    if STOPPED in groups[0]:
        settings.append(STOPPED)
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
    return f"{mean} ± {format_metric(std)}"


def repeat_folders(jobs: Sequence[SweepJob]) -> dict[str, list[Path]]:
    """Returns the run directories of each setting, by a label of the swept keys except `seed`.

    Empty if no setting is repeated. A directory that holds another run is left out.
    """
    keys, values = setting_columns(
        [job.overrides for job in jobs],
        [job.config for job in jobs],
    )
    keys = [key for key in keys if key != "seed"]
    rows = []
    for job, row in zip(jobs, values, strict=True):
        rows.append({**row, "job": job})
    by_label = {}
    for members in group_repeats(rows, keys):
        first = members[0]
        label = ",".join(f"{key}={first.get(key)}" for key in keys)
        folders = [row["job"].folder for row in members if _has_run(row["job"])]
        by_label[label or "all"] = folders
    return by_label


def _has_run(job: SweepJob) -> bool:
    try:
        return bool(_read_result(job))
    except VggexpError:
        return False


def setting_columns(
    overrides: Sequence[Sequence[str]], configs: Sequence[Config | None]
) -> SettingColumns:
    """Finds the settings in which the jobs of a sweep differ.

    The keys of the command come first, with their values as typed. Then come the other keys in
    which the configurations differ, such as those that only the swept experiment files set.

    Args:
        overrides: the overrides of each job.
        configs: the configuration of each job; None if it is unknown.
    """
    values = [parse_job(job) for job in overrides]
    typed = varying_keys(values)
    settings = [{} if config is None else _settings(config) for config in configs]
    known = [row for row in settings if row]
    # The column of a group, as arch=vgg16, stands for all keys of the group.
    groups = tuple(f"{key}." for key in typed)
    added = []
    for key in varying_keys(known):
        is_network = key == "network" and any(f"{name}.".startswith("arch.") for name in typed)
        if key not in typed and not key.startswith(groups) and not is_network:
            added.append(key)
    if "network" in added:
        networks = [row["network"] for row in known]
        added = [key for key in added if not _names_the_key(networks, known, key)]
    for row, chosen in zip(values, settings, strict=True):
        for key in added:
            if key in chosen:
                row[key] = chosen[key]
    return SettingColumns([*typed, *added], values)


def _names_the_key(networks: Sequence[str], settings: Sequence[dict[str, str]], key: str) -> bool:
    """Returns whether the network's name determines the value of a key of NETWORK_KEYS."""
    pairs = {(name, row.get(key)) for name, row in zip(networks, settings, strict=True)}
    return key in NETWORK_KEYS and len(pairs) == len(set(networks))


def _settings(config: Config) -> dict[str, str]:
    """Returns the values of a configuration that may have a column, and its network."""
    values = {"network": network_name(config)}
    for key, value in flatten(to_plain(config)).items():
        if not key.startswith(HIDDEN_KEYS):
            values[key] = format_value(value)
    return values


def swept_keys(overrides: Sequence[Sequence[str]]) -> list[str]:
    """Returns the keys with several values among the overrides of the jobs."""
    return varying_keys([parse_job(job) for job in overrides])


def parse_job(overrides: Sequence[str]) -> dict[str, str]:
    """Returns the values of a job by key, as typed."""
    return typed_values(map(parse_override, overrides))


def _format_cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    return format_metric(value) if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> None:
    """Writes a file. Raises ResourceError."""
    # Another controller of this sweep may be writing the same file.
    another = contextlib.suppress(FileExistsError, FileNotFoundError)
    with os_error_as_resource_error(path, "written"), another:
        make_dir(path.parent)
        atomic_write(path, text.encode())
