"""Formats values and tables as text for people, and tables as CSV for programs."""

import csv
import html
import io
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

MAX_ERROR_CHARS = 200  # of another library's error text in ours
HASH_CHARS = 8  # of a hash in a table or a line: as many as the name of a run has
SPLIT_NAMES = {"train": "training", "val": "validation", "test": "test"}  # in a sentence
PREFIXES = " kMGTPE"  # decimal prefixes, by powers of 1000
HUGE = 1e6  # a metric from here on has four digits in all


def format_value(value: object) -> str:
    """Formats a value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(format_value, value)) + "]"
    if isinstance(value, Mapping):
        items = [f"{key}:{format_value(item)}" for key, item in value.items()]
        return "{" + ",".join(items) + "}"
    return str(value)


def format_bytes(number: float, unit: str) -> str:
    """Formats any quantity with four digits and a decimal prefix: `1.400 GMAC`, `512 B`."""
    _, exponent_text = f"{number:.3e}".split("e")
    exponent = int(exponent_text)
    if exponent < 3:
        return f"{number:.0f} {unit}"
    power = min(exponent // 3, len(PREFIXES) - 1)
    digits = 3 - exponent % 3
    return f"{number / 1000**power:.{digits}f} {PREFIXES[power]}{unit}"


def plural(count: int, noun: str) -> str:
    """Formats a count of things: `1 run`, `1,200 batches`."""
    if count == 1:
        return f"1 {noun}"
    ending = "es" if noun.endswith("tch") else "s"
    return f"{count:,} {noun}{ending}"


def format_metric(value: float) -> str:
    """Formats a metric as `0.9123`, and a huge loss as `2.441e+13`."""
    return f"{value:.4g}" if abs(value) >= HUGE else f"{value:.4f}"


def advise(overrides: Sequence[str]) -> str:
    """Returns "try a, or b"."""
    return f"try {', or '.join(overrides)}"


def printable(text: str, keep: str = "") -> str:
    """Escapes control characters, so that no name moves the cursor or starts a line.

    Args:
        keep: characters that are not escaped.
    """
    characters = []
    for character in text:
        if not character.isprintable() and character not in keep:
            character = character.encode("unicode_escape").decode()
        characters.append(character)
    return "".join(characters)


def escape_html(text: str) -> str:
    """Returns a text as HTML that shows it; control characters are escaped, too."""
    return html.escape(printable(text))


def shorten(text: str, max_chars: int) -> str:
    """Formats a text for a cell of a table: printable, and a longer text ends in dots."""
    text = printable(text)
    if len(text) <= max_chars:
        return text
    return text[: max_chars - 3] + "..."


def shorten_name(name: str, max_chars: int) -> str:
    """Formats the name of a run as `shorten`, but cuts its middle: copies differ at the end."""
    name = printable(name)
    if len(name) <= max_chars:
        return name
    kept = max_chars - 3
    return f"{name[: kept - kept // 2]}...{name[-(kept // 2) :]}"


def one_line(error: object) -> str:
    """Shortens the error text of another library to one line; an empty text to its class."""
    text = " ".join(str(error).split())
    return shorten(text or type(error).__name__, MAX_ERROR_CHARS)


def error_line(message: str) -> str:
    """Formats the line of an error."""
    return f"vggexp: error: {printable(message)}"


def tensorboard_command(folder: object) -> str:
    """Formats the command that shows a run or a sweep in TensorBoard."""
    return f"python -m vggexp.tensorboard {shlex.quote(str(folder))}"


def report_command(folder: object) -> str:
    """Formats the command that reports on the runs of a folder."""
    return f"python -m vggexp.report {shlex.quote(str(folder))}"


def duration(seconds: float) -> str:
    """Formats a time as `102.3 s`, `12.4 min` or `3.1 h`.

    The unit is the first in which the number is below 120, or hours.
    """
    minutes = seconds / 60
    if seconds < 120:
        return f"{seconds:.1f} s"
    if minutes < 120:
        return f"{minutes:.1f} min"
    return f"{minutes / 60:.1f} h"


def aligned_table(rows: Sequence[Sequence[str]], left_columns: int) -> list[str]:
    """Returns the lines of a plain table; control characters are escaped.

    Args:
        rows: cells; each row has the same number of cells.
        left_columns: number of columns that are aligned to the left. The columns after them hold
            numbers, and are aligned to the right.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        for index in range(left_columns, len(row)):
            cells[index] = row[index].rjust(widths[index])
        lines.append("  ".join(cells).rstrip())
    return lines


def markdown_table(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of an aligned Markdown table; a `|` and control characters are escaped."""
    rows = []
    for row in [columns, *cells]:
        rows.append([printable(text).replace("|", "\\|") for text in row])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        lines.append("| " + " | ".join(padded) + " |")
    rule = "|".join("-" * (width + 2) for width in widths)
    lines.insert(1, f"|{rule}|")
    return lines


def csv_table(columns: Sequence[str], cells: Sequence[Sequence[Any]]) -> str:
    """Returns a table as CSV; None is an empty cell."""
    stream = io.StringIO()
    csv.writer(stream).writerows([columns, *cells])
    return stream.getvalue()
