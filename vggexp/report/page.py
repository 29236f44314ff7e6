"""Renders runs as one HTML page that loads nothing from the network.

Texts that come from files of runs are escaped everywhere.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

from vggexp import __version__
from vggexp.formatting import duration, escape_html, format_metric, format_value, plural
from vggexp.report import mistakes, sections
from vggexp.report.heatmaps import heat_map
from vggexp.report.run_details import run_details, split_shared
from vggexp.report.selection import Selection
from vggexp.report.table import Section, Table
from vggexp.runs.repeats import Row

ASSETS = Path(__file__).parent
RANKING_NOTES = {
    "val/accuracy": "Best validation accuracy first.",
    "test/accuracy": "Best test accuracy first: no run has validation images, "
    "so the score of the best run is too good.",
}
MAX_CURVE_POINTS = 200  # longer curves are thinned
MAX_COLOR_GROUPS = 6  # values of the setting that colors the points of the costs


def render_page(data_sections: Sequence[Section], selection: Selection) -> str:
    """Returns the page."""
    script = "".join((ASSETS / name).read_text("utf-8") for name in ("charts.js", "page.js"))
    runs = [run for section in data_sections for run in section.listed.runs]
    count = sum(len(section.table.runs) for section in data_sections)
    contents = []
    first = 0
    for index, section in enumerate(data_sections):
        contents.append(_data_section(section, index, first))
        first += len(section.listed.runs)
    parts = {
        "title": plural(count, "run"),
        "subtitle": _subtitle(data_sections, selection),
        "navigation": _navigation(data_sections),
        "sections": "".join(contents),
        "environment": sections.environment_section(runs),
        "data": _script_json(_script_data(data_sections)),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": (ASSETS / "page.css").read_text("utf-8"),
        "version": escape_html(__version__),
    }
    template = (ASSETS / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _subtitle(data_sections: Sequence[Section], selection: Selection) -> str:
    """Returns the folders, the selection and the date."""
    words = ["in " + ", ".join(escape_html(str(path)) for path in selection.folders)]
    if selection.where is not None:
        condition = f"<code>{escape_html(selection.where)}</code>"
        words.append(f"those of {plural(selection.found, 'run')} with {condition}")
    if selection.best is not None:
        words.append(f"the best {selection.best} of each data set are listed")
    now = datetime.now().astimezone()
    words.append(f"<time>{now:%Y-%m-%d %H:%M %Z}</time>")
    return " · ".join(words)


def _navigation(data_sections: Sequence[Section]) -> str:
    """Returns links to the data sets; empty if there is only one."""
    if len(data_sections) == 1:
        return ""
    items = ""
    for index, section in enumerate(data_sections):
        name = escape_html(section.table.data)
        count = plural(len(section.table.runs), "run")
        items += f'<li><a href="#data-{index}">{name}</a> {count}</li>'
    return (
        f"<nav><p>{len(data_sections)} data sets. Scores on different images do not compare, "
        f"so each has a table of its own.</p><ul>{items}</ul></nav>"
    )


def _data_section(section: Section, index: int, first: int) -> str:
    """Returns all that the page shows of one data set.

    Args:
        first: Index of the first listed run among the runs of the page.
    """
    table = section.listed
    parts = {
        "id": f"data-{index}",
        "index": str(index),
        "name": escape_html(table.data),
        "tiles": _tiles(section.table),
        "ranking": _ranking_note(section),
        "runs": sections.runs_section(table, first),
        "repeats": sections.repeats_section(section),
        "heat": heat_map(section.table),
        "best": mistakes.best_run_section(table),
    }
    template = (ASSETS / "data_section.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _ranking_note(section: Section) -> str:
    table = section.table
    note = RANKING_NOTES[table.score]
    if table.score == "val/accuracy" and table.val_images:
        fewest = table.val_images[0]
        share = f"{Decimal(f'{1 / fewest:.2g}'):f}"  # without an exponent
        if len(table.val_images) == 1:
            note += f" Of {fewest:,} validation images, one is {share} of the accuracy."
        else:
            note += (
                f" The runs have {fewest:,} to {table.val_images[-1]:,} validation images; "
                f"of {fewest:,}, one is {share} of the accuracy."
            )
    hidden = len(table.rows) - len(section.listed.rows)
    if hidden:
        note += f" {plural(hidden, 'run')} of lower rank left out."
    return note


def _script_json(value: Any) -> str:
    """Returns JSON for a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _tiles(table: Table) -> str:
    """Returns the numbers at the top of a data set."""
    states = Counter(row["state"] for row in table.rows)
    finished = states.pop("finished", 0)
    tiles = []
    if finished:
        best = table.rows[0]
        for metric in ("val/accuracy", "test/accuracy"):
            if best[metric] is not None:
                name = f"{metric} of the best run"
                tiles.append(_tile(name, f"{best[metric]:.4f}", table.labels[0]))
    others = ", ".join(f"{count} {state}" for state, count in states.items())
    tiles.append(_tile("finished", f"{finished:,} of {len(table.rows):,}", others or "all of them"))
    seconds = sum(row["seconds"] or 0 for row in table.rows)
    tiles.append(_tile("time", duration(seconds), "in all runs"))
    return "".join(tiles)


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd><dd>{escape_html(note)}</dd></div>"


def _script_data(data_sections: Sequence[Section]) -> dict[str, Any]:
    """Returns what the script draws and shows: all runs of the page, and which belong together."""
    runs: list[dict[str, Any]] = []
    charts = []
    for section in data_sections:
        table = section.listed
        details = run_details(table)
        chart = {
            "runs": [len(runs), len(runs) + len(details)],
            "keys": _curve_keys(table),
            "score": table.score,
            "varying": table.settings,
            "groups": _color_key(table),
        }
        for part in ("settings", "environment"):  # what all runs of the data set share stands once
            chart[part], remainders = split_shared([run[part] for run in details])
            for run, own in zip(details, remainders, strict=True):
                run[part] = own
        for run, points in zip(details, _points(table), strict=True):
            runs.append(run | points)
        charts.append(chart)
    return {"sections": charts, "runs": runs}


def _curve_keys(table: Table) -> list[str]:
    held_out, _, _ = table.score.partition("/")
    return [f"{held_out}/accuracy", "train/accuracy", f"{held_out}/loss", "train/loss"]


def _color_key(table: Table) -> str | None:
    """Returns the setting whose values have colors; None if no setting has a few values."""
    for key in table.settings:
        count = len({format_value(row[key]) for row in table.rows})
        if key != "seed" and count <= MAX_COLOR_GROUPS:
            return key
    return None


def _points(table: Table) -> list[dict[str, Any]]:
    """Returns of each run its curves, and its point in the charts of the costs if it finished."""
    keys = _curve_keys(table)
    color_key = _color_key(table)
    points = []
    for row, run in zip(table.rows, table.runs, strict=True):
        points.append(
            {
                "score": row[table.score] if row["state"] == "finished" else None,
                "seconds": row["seconds"],
                "parameters": row["parameters"],
                "group": format_value(row[color_key]) if color_key else "",
                "curves": _curves(run.rows, keys),
                "last": [_last_value(run.rows, key) for key in keys],
            }
        )
    return points


def _curves(rows: Sequence[Row], keys: Sequence[str]) -> list[list[float | None]]:
    """Returns the epoch and a value for each key with four digits, of each epoch of a short run.

    Of a run with more than MAX_CURVE_POINTS epochs it takes every second epoch, every third, ...
    """
    kept_rows: Sequence[Row] = rows
    if len(rows) > MAX_CURVE_POINTS:
        step = -(-len(rows) // MAX_CURVE_POINTS)
        kept_rows = [*rows[:-1:step], rows[-1]]
    return [[row.get("epoch"), *(_four_digits(row.get(key)) for key in keys)] for row in kept_rows]


def _last_value(rows: Sequence[Row], key: str) -> str:
    """Returns the last value of a curve, as the tables have it."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return format_metric(values[-1]) if values else "-"


def _four_digits(value: Any) -> float | None:
    return None if value is None else float(f"{value:.4g}")
