"""One HTML page of a set of runs. It asks nothing of the network, and what runs say of themselves stays text."""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vggexp import __version__
from vggexp.formatting import duration
from vggexp.report import sections
from vggexp.report.heatmaps import heat_map
from vggexp.report.table import Table, number
from vggexp.runs.repeats import Row

ASSETS = Path(__file__).parent
RANKING = {
    "val/accuracy": "Best validation first.",
    "test/accuracy": "Best test first: no run holds images out for validation, so the best is flattered.",
}
POINTS = 200  # of one curve; longer ones are thinned


def page(table: Table, groups: Sequence[Row], sources: Sequence[Path]) -> str:
    """sources: the folders that were asked for."""
    script = (ASSETS / "page.js").read_text("utf-8")
    parts = {
        "title": f"{len(table.runs):,} run{'s' * (len(table.runs) != 1)}",
        "sources": ", ".join(escape(str(path)) for path in sources),
        "tiles": "".join(_tiles(table)),
        "ranking": RANKING[table.score],
        "runs": sections.runs_section(table),
        "repeats": sections.repeats_section(groups),
        "heat": heat_map(table, groups),
        "best": sections.best_run_section(table),
        "environment": sections.environment_section(table.runs),
        "data": _json(_drawn(table)),
        "script": script,
        "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "style": (ASSETS / "page.css").read_text("utf-8"),
        "version": escape(__version__),
    }
    template = (ASSETS / "page.html").read_text("utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)


def _json(value: Any) -> str:
    """For a script element: nothing in it can end the element or open a comment."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _tiles(table: Table) -> Iterator[str]:
    """The few numbers one looks for first."""
    states = Counter(row["state"] for row in table.rows)
    if states["finished"]:
        best = table.rows[0]
        scores = {
            name: best[name] for name in ("val/accuracy", "test/accuracy") if best[name] is not None
        }
        for name, value in scores.items():
            yield _tile(f"{name} of the best run", f"{value:.4f}", table.run_label(best))
    others = ", ".join(f"{count} {state}" for state, count in states.items() if state != "finished")
    yield _tile(
        "finished", f"{states['finished']:,} of {len(table.rows):,}", others or "all of them"
    )
    yield _tile("time", duration(sum(row["seconds"] or 0 for row in table.rows)), "in all runs")


def _tile(name: str, value: str, note: str) -> str:
    return f"<div><dt>{name}</dt><dd>{value}</dd><dd>{escape(note)}</dd></div>"


def _drawn(table: Table) -> dict[str, Any]:
    """What the script draws: the curves of every run, and a point for each finished one."""
    held_out = table.score.partition("/")[0]
    keys = [f"{part}/{name}" for name in ("accuracy", "loss") for part in (held_out, "train")]
    runs = []
    for row, run in zip(table.rows, table.runs, strict=True):
        score = row[table.score] if row["state"] == "finished" else None
        costs = {"seconds": row["seconds"], "parameters": row["parameters"]}
        runs.append(
            {
                "name": table.run_label(row),
                "score": score,
                **costs,
                "curves": _curves(run.rows, keys),
            }
        )
    return {"keys": keys, "score": table.score, "runs": runs}


def _curves(rows: Sequence[Row], keys: Sequence[str]) -> list[list[float | None]]:
    """[epoch, a value for each key] of each epoch, four digits each."""
    step = -(-len(rows) // POINTS)
    kept = [*rows[:-1:step], rows[-1]] if rows else []
    return [[_short(row.get(key)) for key in ("epoch", *keys)] for row in kept]


def _short(value: Any) -> float | None:
    known = number(value)
    return None if known is None else float(f"{known:.4g}")
