"""Collects what the page shows of one run in a panel: scores, settings, time, environment."""

import contextlib
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from vggexp.config.keys import flatten
from vggexp.config.validate import OBJECTIVES
from vggexp.errors import VggexpError
from vggexp.formatting import format_bytes, format_value
from vggexp.report.table import Table, display_cell, run_metrics
from vggexp.runs import schema
from vggexp.runs.directory import OVERRIDES
from vggexp.runs.records import RunRecord
from vggexp.runs.repeats import Row

HIDDEN_SETTINGS = ("run.", "sweep.", "resume")  # keys that say where and how often, not what
SCORES = (  # in the order of the panel
    *OBJECTIVES,
    "best/val/accuracy",
    "best/epoch",
    "epoch",
    "test_weights",
    "parameters",
    "images_per_second",
    "peak_memory_bytes",
    "weights_sha256",
)
TIME_PREFIX = "time/"  # of the seconds of a part of the run: time/compute_seconds
TIME_SUFFIX = "_seconds"

Texts = dict[str, str]


def run_details(table: Table) -> list[dict[str, Any]]:
    """Returns the details of each run of a table, for the script of the page."""
    details = []
    for run, row, label in zip(table.runs, table.rows, table.labels, strict=True):
        details.append(
            {
                "name": label,
                "run": row["run"],
                "folder": str(run.folder),
                "state": row["state"],
                "error": row["error"],
                "date": row["date"],
                "command": read_command(run),
                "scores": _scores(run),
                "time": _time_parts(run, row["seconds"]),
                "settings": {"network": row["network"], **_settings(run)},
                "environment": to_texts(run.environment),
            }
        )
    return details


def read_command(run: RunRecord) -> str | None:
    """Returns the command that was typed for the run, for a shell; None if it is not recorded."""
    with contextlib.suppress(VggexpError, FileNotFoundError):
        text = schema.read_bytes(run.folder / OVERRIDES).decode("utf-8", "replace")
        return shlex.join(["python", "-m", "vggexp", *text.splitlines()])
    return None


def _scores(run: RunRecord) -> Texts:
    metrics = run_metrics(run)
    scores = {}
    for key in SCORES:
        value = metrics.get(key)
        if value is None:
            continue
        if key == "peak_memory_bytes":
            scores["peak memory"] = format_bytes(value, "B")
        elif key == "images_per_second":
            scores["images a second"] = f"{value:,.1f}"
        elif key.endswith(("/loss", "accuracy")):
            scores[key] = f"{value:.4f}"
        else:
            scores[key] = display_cell(key, value)
    return scores


def _time_parts(run: RunRecord, seconds: float | None) -> list[tuple[str, float]]:
    """Returns the seconds of the parts of the run, the longest first, and of the rest."""
    sums: dict[str, float] = {}
    for row in [run.result] if _part_seconds(run.result) else run.rows:
        for part, value in _part_seconds(row).items():
            sums[part] = sums.get(part, 0.0) + value
    if seconds is not None and sums:
        sums["other"] = max(0.0, seconds - sum(sums.values()))
    parts = [(part, round(value, 1)) for part, value in sums.items()]
    return sorted((part for part in parts if part[1]), key=lambda part: -part[1])


def _part_seconds(row: Row) -> dict[str, float]:
    """Returns {"compute": seconds, ...} of time/compute_seconds, ... but not of a whole epoch."""
    parts = {}
    for key, value in row.items():
        part = key.removeprefix(TIME_PREFIX).removesuffix(TIME_SUFFIX)
        if key.startswith(TIME_PREFIX) and part != "epoch" and value is not None:
            parts[part] = value
    return parts


def _settings(run: RunRecord) -> Texts:
    settings = {}
    for key, value in run.config.items():
        if not key.startswith(HIDDEN_SETTINGS):
            settings[key] = format_value(value)
    return settings


def to_texts(values: Mapping[str, Any]) -> Texts:
    """Returns nested values with flat keys, as texts."""
    return {key: format_value(value) for key, value in flatten(values).items()}


def split_shared(texts: Sequence[Texts]) -> tuple[Texts, list[Texts]]:
    """Returns what all have in common, and what remains of each: a page stays small."""
    shared = dict(texts[0])
    for own in texts[1:]:
        shared = {key: text for key, text in shared.items() if own.get(key) == text}
    remainders = []
    for own in texts:
        remainders.append({key: text for key, text in own.items() if key not in shared})
    return shared, remainders
