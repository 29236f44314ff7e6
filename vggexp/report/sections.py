"""Renders the tables of the page: the runs, their repeats, and the environment."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from vggexp.config.keys import flatten
from vggexp.formatting import format_value, plural
from vggexp.report.table import Table, csv_cell, display_cell
from vggexp.runs.environment import WORKING_DIRECTORY
from vggexp.runs.records import RunRecord
from vggexp.runs.repeats import Row

NUMBER_COLUMNS = (  # last words of the columns that are aligned to the right
    "accuracy",
    "loss",
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
MAX_OTHER_VALUES = 5  # values of other runs that the environment lists for a key
UNRECORDED = "-"


def runs_section(table: Table) -> str:
    """Returns the content of the table of runs.

    A row has the index of its run, and a cell has the exact value of the CSV file.
    """
    header = "<th></th>"
    for name in table.columns:
        attribute = _class_attribute(name)
        header += f'<th{attribute} scope="col"><button>{escape(name)}</button></th>'
    body = ""
    for index, (row, run) in enumerate(zip(table.rows, table.runs, strict=True)):
        disabled = "" if run.rows else " disabled"
        label = f"curves of {escape(row['run'])}"
        checkbox = f'<td><input type="checkbox" aria-label="{label}"{disabled}></td>'
        body += f'<tr data-run="{index}">{checkbox}{_cells(table.columns, row)}</tr>'
    return f"<thead><tr>{header}</tr></thead><tbody>{body}</tbody>"


def _cells(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    return "".join(_cell(column, row[column]) for column in columns)


def _cell(column: str, value: Any) -> str:
    exact = escape(csv_cell(value))
    text = escape(display_cell(column, value))
    data = "" if exact == text else f' data-value="{exact}"'
    if column == "state":
        css_class = re.sub("[^a-z]", "-", exact)
        text = f'<span class="state {css_class}">{text}</span>'
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
        header += f'<th{_class_attribute(column)} scope="col">{escape(column)}</th>'
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    table = f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="box tall fit">{table}</div>'


def repeats_section(groups: Sequence[Row]) -> str:
    """Returns the means over seeds as HTML; empty without groups."""
    if not groups:
        return ""
    note = (
        "Runs that differ only in the seed: "
        "mean and sample standard deviation over the seeds of the finished runs. "
        "Each seed counts once; further runs of a seed are copies."
    )
    return f"<section><h2>Repeats</h2><p>{note}</p>{html_table(groups)}</section>"


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
