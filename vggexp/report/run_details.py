"""Collects what the page shows of one run in a panel: scores, settings, time, environment."""

from collections.abc import Mapping, Sequence
from typing import Any

from vggexp.config.keys import flatten
from vggexp.config.validate import OBJECTIVES
from vggexp.formatting import duration, format_bytes, format_value
from vggexp.report.table import Table, display_cell, run_metrics
from vggexp.runs.continuation import continuation, read_command
from vggexp.runs.records import RunRecord
from vggexp.runs.times import added_seconds, part_seconds

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
                "continuation": continuation(run),
                "scores": _scores(run),
                "time": _time_parts(run, row["seconds"]),
                "added_time": _added_time(run),
                "settings": {"network": row["network"], **_settings(run)},
                "environment": to_texts(run.environment),
            }
        )
    return details


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
        else:
            scores[key] = display_cell(key, value)
    return scores


def _time_parts(run: RunRecord, seconds: float | None) -> list[tuple[str, float]]:
    """Returns the seconds of the parts of the run, the longest first, and of the rest."""
    sums: dict[str, float] = {}
    for row in [run.result] if part_seconds(run.result) else run.rows:
        for part, value in part_seconds(row).items():
            sums[part] = sums.get(part, 0.0) + value
    if seconds is not None and sums:
        sums["other"] = max(0.0, seconds - sum(sums.values()))
    parts = [(part, round(value, 1)) for part, value in sums.items()]
    return sorted((part for part in parts if part[1]), key=lambda part: -part[1])


def _added_time(run: RunRecord) -> str:
    """Returns what comes in addition to the parts: `and 4.2 s of start-up`; empty for nothing."""
    parts = []
    for part, seconds in added_seconds(run.result).items():
        if round(seconds, 1):
            parts.append(f"{duration(seconds)} of {part}")
    return f"and {', '.join(parts)}" if parts else ""


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
