"""Tables as text: aligned Markdown for readers, CSV for programs."""

import csv
import io
from collections.abc import Sequence
from typing import Any


def markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of an aligned table; a `|` in a text does not end its cell."""
    head, *body = [[text.replace("|", "\\|") for text in row] for row in [columns, *cells]]
    widths = [max(len(row[index]) for row in [head, *body]) for index in range(len(head))]
    line = "| " + " | ".join(f"{{:<{width}}}" for width in widths) + " |"
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line.format(*head), rule, *(line.format(*row) for row in body)]


def csv_text(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """None is an empty cell."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *cells])
    return text.getvalue()
