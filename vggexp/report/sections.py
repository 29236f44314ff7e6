"""Renders the tables of the page: the runs, their repeats, and the environment."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vggexp.config.keys import flatten
from vggexp.formatting import escape_html, format_value, plural
from vggexp.report.table import MAX_LEADING_SETTINGS, Section, Table, csv_cell, display_cell
from vggexp.runs.environment import WORKING_DIRECTORY
from vggexp.runs.records import RunRecord
from vggexp.runs.repeats import STOPPED, Row

NUMBER_COLUMNS = (  # last words of the columns that are aligned to the right
    "accuracy",
    "loss",
    "epoch",
    "epochs",
    "seconds",
    "parameters",
    "mean",
    "deviation",
    "runs",
    "finished",
    "image",
    "probability",
)
COUNTS = ("runs", "copies", "not finished")  # columns of the means over seeds
MAX_OTHER_VALUES = 5  # values of other runs that the environment lists for a key
UNRECORDED = "-"


def runs_section(table: Table, first: int) -> str:
    """Returns the content of the table of runs.

    A row has the index of its run, and a cell has the exact value of the CSV file.

    Args:
        first: Index of the first run of the table among the runs of the page.
    """
    header = ""
    for name in table.page_columns:
        attribute = _class_attribute(name)
        header += f'<th{attribute} scope="col"><button>{escape_html(name)}</button></th>'
    body = ""
    for index, (row, run, label) in enumerate(
        zip(table.rows, table.runs, table.labels, strict=True), first
    ):
        cell = _run_cell(row, label, has_curves=bool(run.rows))
        body += f'<tr data-run="{index}">{cell}{_cells(table.page_columns[1:], row)}</tr>'
    return f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody>"


def _run_cell(row: Row, label: str, has_curves: bool) -> str:
    """Returns the header of a row: the run, whether its curves are drawn, and what it lacks."""
    name = escape_html(row["run"])
    disabled = "" if has_curves else " disabled"
    checkbox = f'<input type="checkbox" aria-label="curves of {name}"{disabled}>'
    state = ""
    if row["state"] != "finished":
        state = f" {_state(row['state'])}"
    button = f'<button title="{name}">{escape_html(label)}</button>'
    content = f"<div>{checkbox}<span>{button}{state}</span></div>"
    return f'<th class="run" scope="row" data-value="{name}">{content}</th>'


def _state(state: str) -> str:
    css_class = re.sub("[^a-z]", "-", state)
    return f'<span class="state {css_class}">{escape_html(state)}</span>'


def _cells(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    return "".join(_cell(column, row[column]) for column in columns)


def _cell(column: str, value: Any) -> str:
    exact = escape_html(csv_cell(value))
    text = escape_html(display_cell(column, value))
    data = "" if exact == text else f' data-value="{exact}"'
    if column == "state":
        text = _state(str(value))
    return f"<td{_class_attribute(column)}{data}>{text}</td>"


def _class_attribute(column: str) -> str:
    last_word = re.split("[/ ]", column)[-1]
    if last_word in NUMBER_COLUMNS:
        return ' class="number"'
    if column in ("run", "error"):
        return f' class="{column}"'
    return ""


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns a table element. The columns are the keys of the first row."""
    columns = list(rows[0])
    header = ""
    for column in columns:
        header += f'<th{_class_attribute(column)} scope="col">{escape_html(column)}</th>'
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="box fit"><div class="scroll tall">{table}</div></div>'


def repeats_section(section: Section) -> str:
    """Returns the means over seeds as HTML; empty if no run has a repeat."""
    if not section.repeats:
        return ""
    note = (
        "Runs that differ only in the seed: "
        "mean ± sample standard deviation over the seeds of the finished runs, "
        "or of those that were stopped at the same epoch. "
        "Each seed counts once; further runs of a seed are copies."
    )
    settings = [key for key in section.table.settings if key != "seed"]
    leading = len(settings) if len(settings) <= MAX_LEADING_SETTINGS else 1
    counts = [key for key in (STOPPED, *COUNTS) if key in section.repeats[0]]
    rows = []
    for means in section.repeats:
        row = {key: means[key] for key in settings[:leading]}
        for metric in ("val/accuracy", "test/accuracy"):
            row[metric] = _mean_and_std(means, metric)
        row |= {key: means[key] for key in [*settings[leading:], *counts]}
        rows.append(row)
    return f"<section><h3>Repeats</h3><p>{note}</p>{html_table(rows)}</section>"


def _mean_and_std(means: Row, metric: str) -> str | None:
    mean = means[f"{metric} mean"]
    std = means[f"{metric} deviation"]
    if mean is None:
        return None
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def environment_section(runs: Sequence[RunRecord]) -> str:
    """Returns versions and machine of the first run, and the different values of other runs."""
    environments = []
    for run in runs:
        values = {key: format_value(value) for key, value in flatten(run.environment).items()}
        for key in ("attempts", WORKING_DIRECTORY):  # differ between runs of one environment
            values.pop(key, None)
        environments.append(values)
    rows = [
        {
            "": key,
            "first run": environments[0].get(key, UNRECORDED),
            "other runs": _other_values(key, environments),
        }
        for key in dict.fromkeys(key for values in environments for key in values)
    ]
    if not rows:
        return ""
    note = "Environment of the first run in the table, and the values of other runs that differ."
    if not any(row["other runs"] for row in rows):
        note = "Environment of the first run in the table. All other runs have the same values."
        rows = [{"": row[""], "value": row["first run"]} for row in rows]
    return f"<section><h2>Environment</h2><p>{note}</p>{html_table(rows)}</section>"


def _other_values(key: str, environments: Sequence[Mapping[str, str]]) -> str:
    """Lists the values that differ from the first run's, the most frequent first."""
    first = environments[0].get(key, UNRECORDED)
    values = [environment.get(key, UNRECORDED) for environment in environments]
    counts = Counter(value for value in values if value != first)
    parts = []
    for value, count in counts.most_common(MAX_OTHER_VALUES):
        parts.append(f"{value} ({plural(count, 'run')})")
    if len(counts) > MAX_OTHER_VALUES:
        parts.append("...")
    return ", ".join(parts)
