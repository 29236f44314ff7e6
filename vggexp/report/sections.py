"""The tables of the page: the runs, their repeats, what the best one gets wrong, and where it was made."""

import base64
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vggexp.config.keys import flatten
from vggexp.errors import CheckpointError
from vggexp.formatting import format_value
from vggexp.report.heatmaps import confusion_grid
from vggexp.report.mistakes import class_names, worst_mistakes
from vggexp.report.table import Table, cell, raw
from vggexp.runs.predictions import Predictions, read
from vggexp.runs.records import RunRecord
from vggexp.runs.repeats import Row

# The last words of the columns whose numbers stand to the right.
NUMBERS = (
    "accuracy loss epochs seconds parameters mean deviation runs finished image probability".split()
)
SEVERAL = 5  # values of other runs that are told


def runs_section(table: Table) -> str:
    """Rows know the number of their run, and cells the value of the CSV file."""
    heads = (
        f'<th{_kind(name)} scope="col"><button>{escape(name)}</button></th>'
        for name in table.columns
    )
    body = []
    for index, (row, run) in enumerate(zip(table.rows, table.runs, strict=True)):
        off = "" if run.rows else " disabled"
        box = f'<td><input type="checkbox" aria-label="curves of {escape(row["run"])}"{off}></td>'
        body.append(f'<tr data-run="{index}">{box}{_cells(table.columns, row)}</tr>')
    return f"<thead><tr><th></th>{''.join(heads)}</tr></thead><tbody>{''.join(body)}</tbody>"


def _cells(columns: Sequence[str], row: Mapping[str, Any]) -> str:
    return "".join(_cell(column, row[column]) for column in columns)


def _cell(column: str, value: Any) -> str:
    exact = escape(raw(value))
    text = escape(cell(column, value))
    held = f' data-value="{exact}"' if exact != text else ""
    if column == "state":
        text = f'<span class="state {re.sub("[^a-z]", "-", exact)}">{text}</span>'
    return f"<td{_kind(column)}{held}>{text}</td>"


def _kind(column: str) -> str:
    kind = (
        "number"
        if re.split("[/ ]", column)[-1] in NUMBERS
        else column
        if column in ("run", "error")
        else ""
    )
    return f' class="{kind}"' if kind else ""


def _table(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(rows[0])
    head = "".join(f'<th{_kind(column)} scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    return f'<div class="box tall fit"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def repeats_section(groups: Sequence[Row]) -> str:
    if not groups:
        return ""
    note = "Runs that differ in nothing but the seed: mean and sample standard deviation of the finished ones."
    return f"<section><h2>Repeats</h2><p>{note}</p>{_table(groups)}</section>"


def best_run_section(table: Table) -> str:
    """What it gets wrong, as far as its files tell; the empty string where no run has finished."""
    run = table.runs[0]
    row = table.rows[0]
    if run.state != "finished":
        return ""
    try:
        predictions = read(run.folder)
    except CheckpointError as error:
        return _best(row["run"], f"its predictions are left out: {error}", "")
    names = class_names(run.config, predictions.scores.shape[1])
    wrong = int((~predictions.right).sum())
    note = f"{wrong:,} of {len(predictions.labels):,} test images wrong."
    return _best(
        row["run"],
        note,
        confusion_grid(predictions, names) + _mistakes(predictions, names, run.folder),
    )


def _best(name: str, note: str, content: str) -> str:
    return f"<section><h2>The best run</h2><p><code>{escape(name)}</code>: {escape(note)}</p>{content}</section>"


def _mistakes(predictions: Predictions, names: Sequence[str], folder: Path) -> str:
    from vggexp.report.mistakes import (
        read_image_summary,
    )  # imports protobuf, which most commands can do without

    worst = worst_mistakes(predictions)
    if not worst:
        return ""
    rows = [
        {
            "test image": str(mistake.image),
            "true class": names[mistake.label],
            "predicted": names[mistake.predicted],
            "probability": f"{mistake.score:.4f}",
            "true class's probability": f"{mistake.label_score:.4f}",
        }
        for mistake in worst
    ]
    head = "<h3>Worst mistakes</h3><p>The wrong answers of the greatest confidence; images are counted from 0.</p>"
    png = read_image_summary(folder, "test/worst_mistakes")
    return f'{head}<div class="pair">{_table(rows)}{"" if png is None else _image(png, "the worst mistakes")}</div>'


def _image(png: bytes, name: str) -> str:
    return f'<img src="data:image/png;base64,{base64.b64encode(png).decode()}" alt="{name}">'


def environment_section(runs: Sequence[RunRecord]) -> str:
    """Versions and machine of the first run, and the values that others have instead."""
    known = [
        {key: format_value(value) for key, value in flatten(run.environment).items()}
        for run in runs
    ]
    rows = list(_facts(known))
    if not rows:
        return ""
    differ = any(row["other runs"] for row in rows)
    note = "Where the first run of the table was made" + (
        ", and where others differ." if differ else "; all runs alike."
    )
    shown_ = rows if differ else [{"": row[""], "value": row["first run"]} for row in rows]
    return f"<section><h2>Environment</h2><p>{note}</p>{_table(shown_)}</section>"


def _facts(known: Sequence[Mapping[str, str]]) -> Iterator[Row]:
    for key in dict.fromkeys(key for facts in known for key in facts if key != "attempts"):
        first = known[0].get(key, "-")
        others = Counter(facts.get(key, "-") for facts in known if facts.get(key, "-") != first)
        told = [
            f"{value} ({count} run{'s' * (count != 1)})"
            for value, count in others.most_common(SEVERAL)
        ]
        yield {
            "": key,
            "first run": first,
            "other runs": ", ".join(told) + ", ..." * (len(others) > SEVERAL),
        }
