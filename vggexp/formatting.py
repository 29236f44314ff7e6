"""Tables as text: aligned Markdown for readers, CSV for programs."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any


def format_value(value: object) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(format_value, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{format_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def format_bytes(number: float, unit: str) -> str:
    """Four digits and a decimal prefix: `1.400 GMAC`, `179.7 MB`, `512 B`."""
    exponent = int(f"{number:.3e}".split("e")[1])
    if exponent < 3:
        return f"{number:.0f} {unit}"
    power = min(exponent // 3, 6)
    return f"{number / 1000**power:.{3 - exponent % 3}f} {' kMGTPE'[power]}{unit}"


def printable(text: str, keep: str = "") -> str:
    """The text with control characters as escapes: a class or file name must not move the cursor or start a line."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text
    )


def shorten(text: str, longest: int) -> str:
    """As `printable`, in a cell of a table: what is longer than `longest` ends in dots."""
    text = printable(text)
    return text if len(text) <= longest else text[: longest - 3] + "..."


def error_line(message: str) -> str:
    return f"vggexp: error: {printable(message)}"


def duration(seconds: float) -> str:
    """`102.3 s`, `12.4 min`, `3.1 h`: the unit in which the number stays below 120, or hours."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


def markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """The lines of an aligned table; a `|` in a text does not end its cell."""
    head, *body = [[text.replace("|", "\\|") for text in row] for row in [columns, *cells]]
    widths = [max(len(row[index]) for row in [head, *body]) for index in range(len(head))]
    line = "| " + " | ".join(f"{{:<{width}}}" for width in widths) + " |"
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line.format(*head), rule, *(line.format(*row) for row in body)]


def csv_table(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """None is an empty cell."""
    text = io.StringIO()
    csv.writer(text).writerows([columns, *cells])
    return text.getvalue()
