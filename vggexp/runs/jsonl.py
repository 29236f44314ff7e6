"""Writes JSON that survives a crash: metrics.jsonl, steps.jsonl, and small files.

metrics.jsonl has a line for each finished epoch. steps.jsonl has a line for each point of the
curves inside the epochs.
"""

import contextlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vggexp.runs import schema
from vggexp.system.files import atomic_write, fsync_dir, open_no_follow, open_regular


def append(path: Path, metrics: Mapping[str, Any], wait: bool = True) -> None:
    """Adds one line.

    A last line that a crash cut short is dropped first. NaN and infinity, which JSON cannot
    express, become null.

    Args:
        wait: whether to wait until the line is on the disk, which takes milliseconds.
    """
    if _is_cut_short(path):
        rewrite(path, [*read(path), metrics])
        return
    is_new = not path.exists()
    with open(path, "ab", opener=open_no_follow) as file:
        file.write(_line(metrics))
        file.flush()
        if wait:
            os.fsync(file.fileno())
    if is_new:
        fsync_dir(path.parent)


def read(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of epochs or steps, without a last line that a crash cut short.

    Returns [] if the file is missing.

    Raises:
        CheckpointError: another line is not the metrics of an epoch.
        ResourceError: a permission or a resource is missing.
    """
    try:
        *lines, last = schema.read_bytes(path, schema.MAX_METRICS_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            if line:
                rows.append(_parse(line))
        except ValueError as error:
            raise schema.damaged(path, f"line {number}: {error}") from error
    with contextlib.suppress(ValueError):  # cut short
        rows.append(_parse(last))
    return rows


def rewrite(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replaces the whole file."""
    atomic_write(path, b"".join(map(_line, rows)))


def write_json(path: Path, value: Any) -> None:
    """Replaces the file by the indented JSON of one value."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    atomic_write(path, _encode(text))


def _line(row: Mapping[str, Any]) -> bytes:
    return _encode(json.dumps(_finite(row), ensure_ascii=False, allow_nan=False))


def _encode(text: str) -> bytes:
    """Encodes JSON. A byte of a path that is not UTF-8 becomes an escape that JSON knows too."""
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _finite(value: Any) -> Any:
    """Replaces every NaN and infinity by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _parse(line: bytes) -> dict[str, Any]:
    row = schema.parse_object(line)
    schema.check_epoch(row)
    return row


def _is_cut_short(path: Path) -> bool:
    """Returns whether the file ends without a line break."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            if file.seek(0, os.SEEK_END) == 0:
                return False
            file.seek(-1, os.SEEK_END)
            return file.read(1) != b"\n"
    except FileNotFoundError:
        return False
