"""JSON that survives a crash: metrics.jsonl, the record of a run's epochs, and small files replaced in one step."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vggexp.errors import CheckpointError
from vggexp.system.files import atomic_write, fsync_dir


def append(path: Path, metrics: Mapping[str, Any]) -> None:
    """Adds one line and waits until it is on the disk; a line cut short by a crash is dropped first.

    NaN and the infinities, for which JSON has no words, become null.
    """
    if _cut_short(path):
        return rewrite(path, [*read(path), metrics])
    new = not path.exists()
    with open(path, "ab") as file:
        file.write(_line(metrics))
        file.flush()
        os.fsync(file.fileno())
    if new:
        fsync_dir(path.parent)


def read(path: Path) -> list[dict[str, Any]]:
    """The finished epochs; none where the file is missing, and without a last line that was cut short.

    Raises CheckpointError for any other line that is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    rows = [_parse(line) for line in lines]
    bad = [
        number
        for number, (line, row) in enumerate(zip(lines[:-1], rows, strict=False), 1)
        if line and row is None
    ]
    if bad:
        raise CheckpointError(
            f"{path}: line {bad[0]} is not a JSON object (restore the file or start a new run)"
        )
    return [row for row in rows if row is not None]


def rewrite(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    atomic_write(path, b"".join(map(_line, rows)))


def write_json(path: Path, value: Any) -> None:
    atomic_write(
        path,
        json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n",
    )


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # not JSON, or not UTF-8
        return None
    return row if isinstance(row, dict) else None


def _cut_short(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return (
                file.seek(0, os.SEEK_END) > 0
                and file.seek(-1, os.SEEK_END) >= 0
                and file.read(1) != b"\n"
            )
    except FileNotFoundError:
        return False
