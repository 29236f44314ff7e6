"""Renders HTML tables of colored cells: scores over two settings, and the confusion matrix."""

import re
from collections.abc import Sequence
from math import inf
from statistics import quantiles

import numpy as np

from vggexp.formatting import escape_html, format_value
from vggexp.report.table import Table, repeat_rows
from vggexp.runs.confusion import Confusions
from vggexp.runs.repeats import STOPPED, Row

MAX_AXIS_VALUES = 24  # a setting with more values is no axis of a heat map
# From this strength on, white text is easier to read than black. Both have a contrast of 4.5 here.
WHITE_TEXT_STRENGTH = 0.82
MIN_STRENGTH = 0.06  # a cell with a value differs from an empty one
# A score further below the first quartile than FENCE times the distance of the quartiles is an
# outlier, if there are MIN_SCORES.
FENCE = 3
MIN_SCORES = 4
MAX_HEADER_CHARS = 120  # in total; longer column names are written upright

Cell = tuple[str, str]  # value of the setting down, value of the setting across


def heat_map(table: Table) -> str:
    """Returns a section with the best score for each pair of values of two settings.

    A cell has the best mean over seeds or, without repeats, the best run.

    Returns:
        HTML; empty if fewer than two settings vary.
    """
    keys = choose_axes(table)
    if keys is None:
        return ""
    down, across = keys
    groups = repeat_rows(table)
    best = _best_scores(table, groups, down, across)
    scores = [score for score in best.values() if score is not None]
    low = _lowest_color(scores)
    note = f"{table.score} of the best finished run in each cell."
    if groups:
        note = f"Best mean {table.score} over the seeds of finished runs in each cell."
    if None in best.values():
        note += " ✕: none finished."
    if scores and low > min(scores):
        note += f" ▾: below {low:.4f}, where the colors begin."
    title = f"{escape_html(down)} against {escape_html(across)}"
    grid = _score_grid(down, across, best, low)
    return f"<section><h3>{title}</h3><p>{note}</p>{grid}</section>"


def _lowest_color(scores: Sequence[float]) -> float:
    """Returns the score at which the colors begin.

    This is the lowest score, unless a few networks that learned nothing would leave the others
    without a difference in color. Then it is the lowest of the others.
    """
    if len(scores) < MIN_SCORES:
        return min(scores, default=0)
    first, _, third = quantiles(scores, n=4, method="inclusive")
    inside = [score for score in scores if score >= first - FENCE * (third - first)]
    span = max(scores) - min(scores)
    if max(inside) - min(inside) > span / 2:
        return min(scores)
    return min(inside)


def _best_scores(
    table: Table, groups: Sequence[Row], down: str, across: str
) -> dict[Cell, float | None]:
    """Returns the highest score of each cell that has runs; None if none of them finished."""
    rows: Sequence[Row] = [row for row in table.rows if row["state"] == "finished"]
    column = table.score
    if groups:
        rows = [row for row in groups if STOPPED not in row or row[STOPPED] is None]
        column = f"{table.score} mean"
    best: dict[Cell, float | None] = {_cell(row, down, across): None for row in table.rows}
    for row in rows:
        score = row[column]
        if score is not None:
            cell = _cell(row, down, across)
            best[cell] = max(score, best[cell] or score)
    return best


def _cell(row: Row, down: str, across: str) -> Cell:
    return format_value(row[down]), format_value(row[across])


def choose_axes(table: Table) -> tuple[str, str] | None:
    """Returns the settings down and across; None if fewer than two vary.

    These are the network and the learning rate if both vary, else the two settings with the most
    values.
    """
    counts = {}
    for key in table.settings:
        count = len({format_value(row[key]) for row in table.rows})
        if key != "seed" and count <= MAX_AXIS_VALUES:
            counts[key] = count
    if {"network", "optimizer.lr"} <= counts.keys():
        return "network", "optimizer.lr"
    if len(counts) < 2:
        return None
    across, down, *_ = sorted(counts, key=lambda key: -counts[key])
    return down, across


def natural_sort_key(text: str) -> tuple[tuple[float, str], ...]:
    """Returns a key that sorts 0.01 before 0.1 and vgg9 before vgg11."""
    try:
        return ((float(text), ""),)
    except ValueError:
        pass
    parts = []
    for digits, word in re.findall(r"(\d+)|(\D+)", text):
        if digits:
            parts.append((float(digits), ""))
        else:
            parts.append((inf, word))
    return tuple(parts)


def _score_grid(down: str, across: str, best: dict[Cell, float | None], low: float) -> str:
    rows = sorted({cell[0] for cell in best}, key=natural_sort_key)
    columns = sorted({cell[1] for cell in best}, key=natural_sort_key)
    scores = [score for score in best.values() if score is not None]
    span = max(scores, default=0) - low or 1

    def cell_html(cell: Cell) -> str:
        if cell not in best:
            return "<td></td>"
        score = best[cell]
        if score is None:
            return "<td>✕</td>"
        if score < low:
            return _shaded_cell(0, f"{score:.4f} ▾")
        return _shaded_cell((score - low) / span, f"{score:.4f}")

    cells = [[cell_html((row, column)) for column in columns] for row in rows]
    return _grid(f"{down} \\ {across}", rows, columns, cells)


def _shaded_cell(strength: float, text: str, css_class: str = "") -> str:
    """Returns a td element.

    Args:
        strength: From 0, nearly the color of the page, to 1, the full color.
        css_class: "miss" for the color of mistakes.
    """
    classes = [css_class] if css_class else []
    if strength > WHITE_TEXT_STRENGTH:
        classes.append("strong")
    shade = MIN_STRENGTH + (1 - MIN_STRENGTH) * strength
    return f'<td class="{" ".join(classes)}" style="--v:{shade:.2f}">{text}</td>'


def _grid(
    corner: str, rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[str]]
) -> str:
    """Returns a table element.

    Args:
        corner: Text of the upper left cell.
        rows: Names of the rows.
        columns: Names of the columns.
        cells: The td elements of each row.
    """
    css_class = ""
    if len(columns) * max(map(len, columns)) > MAX_HEADER_CHARS:
        css_class = ' class="upright"'
    header = f"<th>{escape_html(corner)}</th>"
    for name in columns:
        header += f'<th scope="col"><span>{escape_html(name)}</span></th>'
    body = ""
    for name, row in zip(rows, cells, strict=True):
        body += f'<tr><th scope="row">{escape_html(name)}</th>{"".join(row)}</tr>'
    table = f"<thead{css_class}><tr>{header}</tr></thead><tbody>{body}</tbody>"
    return (
        f'<div class="box fit"><div class="scroll"><table class="grid">{table}</table></div></div>'
    )


def confusion_grid(confusions: Confusions, names: Sequence[str]) -> str:
    """Returns the confusion matrix as HTML."""
    counts = confusions.matrix()
    images = np.maximum(1, counts.sum(axis=1, keepdims=True))  # of each true class
    strengths = np.sqrt(counts / images)  # the square root makes rare mistakes visible

    def cell_html(label: int, predicted: int) -> str:
        count = counts[label, predicted]
        if not count:
            return "<td></td>"
        css_class = "" if label == predicted else "miss"
        return _shaded_cell(strengths[label, predicted], f"{count:,}", css_class)

    classes = range(len(names))
    cells = [[cell_html(label, predicted) for predicted in classes] for label in classes]
    note = (
        "Test images by true class (rows) and predicted class (columns); "
        "correct predictions blue, mistakes red."
    )
    grid = _grid("true \\ predicted", names, names, cells)
    return f"<p>{note}</p>{grid}"
