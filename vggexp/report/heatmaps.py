"""Grids of coloured cells with their numbers in them: scores over two settings, and confusions of classes."""

import re
from collections.abc import Sequence
from html import escape

import numpy as np

from vggexp.formatting import format_value
from vggexp.report.mistakes import confusion
from vggexp.report.table import Table
from vggexp.runs.predictions import Predictions
from vggexp.runs.repeats import Row

MOST_VALUES = 24  # of an axis; more would be a scatter, not a grid
MOST_CLASSES = 24
DARK = 0.82  # the strength from which white is read better than black: both have a contrast of 4.5 there

Place = tuple[str, str]  # the settings of a cell, down and across


def heat_map(table: Table, groups: Sequence[Row]) -> str:
    """The score over two settings: the network and the learning rate where both vary, else the two that vary most.

    A cell is the best mean over repeats, or the best run without them; the empty string where no two settings vary.
    """
    chosen = axes(table)
    if chosen is None:
        return ""
    down, across = chosen
    note = f"{table.score} of the best finished run in each cell."
    if groups:
        note = f"{table.score} of the best mean over seeds in each cell, of finished runs."
    scores = _scores(down, across, _best(table, groups, chosen))
    return f"<section><h2>{escape(down)} against {escape(across)}</h2><p>{note} ✕: none finished.</p>{scores}</section>"


def _best(
    table: Table, groups: Sequence[Row], chosen: tuple[str, str]
) -> dict[Place, float | None]:
    """The highest score of each cell that has runs, None where none of them finished."""
    best: dict[Place, float | None] = {_place(row, chosen): None for row in table.rows}
    column = f"{table.score} mean" if groups else table.score
    for row in groups or (row for row in table.rows if row["state"] == "finished"):
        place = _place(row, chosen)
        score = row[column]
        if score is not None:
            best[place] = max(score, best[place] or score)
    return best


def _place(row: Row, chosen: tuple[str, str]) -> Place:
    down, across = chosen
    return format_value(row[down]), format_value(row[across])


def axes(table: Table) -> tuple[str, str] | None:
    """The settings down and across."""
    counts = {
        key: len({format_value(row[key]) for row in table.rows})
        for key in table.settings
        if key != "seed"
    }
    counts = {key: count for key, count in counts.items() if count <= MOST_VALUES}
    if {"network", "optimizer.lr"} <= counts.keys():
        return "network", "optimizer.lr"
    most = sorted(counts, key=lambda key: -counts[key])[:2]
    return (most[1], most[0]) if len(most) == 2 else None


def natural_sort_key(text: str) -> tuple[tuple[float, str], ...]:
    """A key for sorting: 0.01 before 0.1 and vgg9 before vgg11."""
    try:
        return ((float(text), ""),)
    except ValueError:
        parts = re.findall(r"(\d+)|(\D+)", text)
        return tuple(
            (float(digits), "") if digits else (float("inf"), word) for digits, word in parts
        )


def _scores(down: str, across: str, best: dict[Place, float | None]) -> str:
    rows, columns = (
        sorted({place[side] for place in best}, key=natural_sort_key) for side in (0, 1)
    )
    known = [value for value in best.values() if value is not None] or [0]
    low = min(known)
    span = max(known) - min(known) or 1

    def score(place: Place) -> str:
        value = best.get(place)
        if value is None:
            return f"<td>{'✕' if place in best else ''}</td>"
        return _shaded((value - low) / span, f"{value:.4f}")

    cells = [[score((row, column)) for column in columns] for row in rows]
    return _grid(f"{down} \\ {across}", rows, columns, cells)


def _shaded(strength: float, text: str, kind: str = "") -> str:
    """strength: 0 to 1, from the page's colour to the full one."""
    words = " ".join(word for word in (kind, "strong" if strength > DARK else "") if word)
    return f'<td class="{words}" style="--v:{0.06 + 0.94 * strength:.2f}">{text}</td>'


def _grid(
    corner: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> str:
    """cells: td elements. Long names of many columns are written upright."""
    upright = ' class="upright"' if len(columns) * max(map(len, columns)) > 120 else ""
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in columns)
    lines = (
        f'<tr><th scope="row">{escape(name)}</th>{"".join(line)}</tr>'
        for name, line in zip(rows, cells, strict=True)
    )
    head = f"<thead{upright}><tr><th>{escape(corner)}</th>{head}</tr></thead>"
    return f'<div class="box fit"><table class="grid">{head}<tbody>{"".join(lines)}</tbody></table></div>'


def confusion_grid(predictions: Predictions, names: Sequence[str]) -> str:
    """Counts of images; the empty string where the classes are too many for a table."""
    counts = confusion(predictions)
    if len(counts) > MOST_CLASSES:
        return ""
    share = np.sqrt(
        counts / np.maximum(1, counts.sum(1, keepdims=True))
    )  # the root shows rare mistakes
    cells = [
        [
            _shaded(share[i, j], f"{n:,}", "" if i == j else "miss") if n else "<td></td>"
            for j, n in enumerate(row)
        ]
        for i, row in enumerate(counts)
    ]
    note = "Test images by true class (rows) and predicted class (columns); right answers blue, wrong ones red."
    return f"<h3>Confusion</h3><p>{note}</p>" + _grid("true \\ predicted", names, names, cells)
