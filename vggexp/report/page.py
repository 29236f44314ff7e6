"""Renders runs as one HTML page that loads nothing from the network.

Texts that come from files of runs are escaped everywhere.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from vggexp import __version__
from vggexp.formatting import duration
from vggexp.report import mistakes, sections
from vggexp.report.heatmaps import heat_map
from vggexp.report.table import Table
from vggexp.runs.repeats import Row

ASSETS = Path(__file__).parent
RANKING_NOTES = {
    "val/accuracy": "Best validation accuracy first.",
    "test/accuracy": "Best test accuracy first: no run has validation images, "
    "so the score of the best run is too good.",
}
MAX_CURVE_POINTS = 200  # longer curves are thinned


def render_page(table: Table, groups: Sequence[Row], sources: Sequence[Path]) -> str:
    """Returns the page.

    Args:
        groups: Means over seeds; empty if no run has a repeat.
        sources: The folders given to the command.
    """
    script = (ASSETS / "page.js").read_text("utf-8")
    count = len(table.runs)
    parts = {
        "title": "1 run" if count == 1 else f"{count:,} runs",
        "sources": ", ".join(escape(str(path)) for path in sources),
        "tiles": _tiles(table),
        "ranking": RANKING_NOTES[table.score],
        "runs": sections.runs_section(table),
        "repeats": sections.repeats_section(groups),
        "heat": heat_map(table, groups),
        "best": mistakes.best_run_section(table),
        "environment": sections.environment_section(table.runs),
        "data": _script_json(_chart_data(table)),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": (ASSETS / "page.css").read_text("utf-8"),
        "version": escape(__version__),
    }
    template = (ASSETS / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def _script_json(value: Any) -> str:
    """Returns JSON for a script element: no text in it can end the element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c")


def _tiles(table: Table) -> str:
    """Returns the numbers at the top of the page."""
    states = Counter(row["state"] for row in table.rows)
    finished = states.pop("finished", 0)
    tiles = []
    if finished:
        best = table.rows[0]
        for metric in ("val/accuracy", "test/accuracy"):
            if best[metric] is not None:
                name = f"{metric} of the best run"
                tiles.append(_tile(name, f"{best[metric]:.4f}", table.run_label(best)))
    others = ", ".join(f"{count} {state}" for state, count in states.items())
    tiles.append(_tile("finished", f"{finished:,} of {len(table.rows):,}", others or "all of them"))
    seconds = sum(row["seconds"] or 0 for row in table.rows)
    tiles.append(_tile("time", duration(seconds), "in all runs"))
    return "".join(tiles)


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd><dd>{escape(note)}</dd></div>"


def _chart_data(table: Table) -> dict[str, Any]:
    """Returns what the script draws: the curves of every run, and a point for each finished run."""
    held_out, _, _ = table.score.partition("/")
    keys = [f"{held_out}/accuracy", "train/accuracy", f"{held_out}/loss", "train/loss"]
    runs = []
    for row, run in zip(table.rows, table.runs, strict=True):
        runs.append(
            {
                "name": table.run_label(row),
                "score": row[table.score] if row["state"] == "finished" else None,
                "paused": row["state"] == "paused",
                "seconds": row["seconds"],
                "parameters": row["parameters"],
                "curves": _curves(run.rows, keys),
            }
        )
    return {"keys": keys, "score": table.score, "runs": runs}


def _curves(rows: Sequence[Row], keys: Sequence[str]) -> list[list[float | None]]:
    """Returns the epoch and a value for each key, of each epoch, with four digits each."""
    kept_rows: Sequence[Row] = rows
    if len(rows) > MAX_CURVE_POINTS:
        step = -(-len(rows) // MAX_CURVE_POINTS)
        kept_rows = [*rows[:-1:step], rows[-1]]
    return [[_four_digits(row.get(key)) for key in ("epoch", *keys)] for row in kept_rows]


def _four_digits(value: Any) -> float | None:
    return None if value is None else float(f"{value:.4g}")
