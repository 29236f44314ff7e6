"""Reads the text files of a run directory, and checks what they hold.

A run directory may come from someone else, or from a damaged disk. So a file is read only if it is
a regular file of a possible size, and its content is checked before any other code sees it.
"""

import errno
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vggexp.config.yaml_limits import MAX_BYTES, MAX_DEPTH
from vggexp.errors import CheckpointError, VggexpError
from vggexp.formatting import format_value, shorten
from vggexp.system.files import missing_resource, read_file

MAX_METRICS_BYTES = 1 << 26  # of metrics.jsonl: 100,000 epochs
MAX_SHOWN_CHARS = 60  # of a wrong value in an error
MAX_NUMBER = 1e100  # sums of such numbers stay finite
MAX_WHOLE = 1 << 53  # floats hold all whole numbers up to this one
REPAIR = "give the command of the run again, which writes it"

# Of result.json; keys with a slash, such as test/accuracy, are numbers as well.
TEXT_KEYS = ("state", "error", "test_weights", "weights_sha256")
WHOLE_KEYS = (
    "epoch",
    "step",
    "weights_step",
    "micro_batches",
    "parameters",
    "train_images",
    "val_images",
    "test_images",
    "exit_code",
)
NUMBER_KEYS = ("seconds", "images_per_second", "peak_memory_bytes")


def damaged(path: Path, reason: str) -> CheckpointError:
    """Returns the error of a file that no run writes."""
    return CheckpointError(f"{path}: {reason}; move it away and {REPAIR}")


def unreadable(path: Path, error: OSError) -> VggexpError:
    """Returns the error of a file that the system does not open or read."""
    if error.errno == errno.ENOENT:
        return CheckpointError(f"{path}: missing; {REPAIR}")
    return missing_resource(path, error) or damaged(path, error.strerror or str(error))


def read_bytes(path: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the content of a file of a run directory.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is no regular file, or too large.
        ResourceError: a permission or a resource is missing.
    """
    try:
        return read_file(path, max_bytes)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise unreadable(path, error) from error


def parse_object(content: bytes) -> dict[str, Any]:
    """Returns a JSON object. Raises ValueError for every other content."""
    try:
        value = json.loads(content.decode())
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # UnicodeDecodeError, too
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    check_plain(value)
    return value


def check_plain(value: Any, depth: int = 0) -> None:
    """Raises ValueError unless a value consists of mappings with text keys, lists and scalars."""
    items: list[Any] = []
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise ValueError(f"the key {_show(key)} is not text")
        items = list(value.values())
    elif isinstance(value, list):
        items = value
    elif not isinstance(value, str | int | float | None):
        raise ValueError(f"{_show(value)} is no plain value")
    if items and depth == MAX_DEPTH:
        raise ValueError("nested too deeply")
    for item in items:
        check_plain(item, depth + 1)


def check_result(content: Mapping[str, Any]) -> None:
    """Raises ValueError unless the keys of result.json that this version knows fit their types."""
    for key, value in content.items():
        if value is None and key != "state":
            continue
        if key in TEXT_KEYS:
            _check(key, value, isinstance(value, str), "text")
        elif key in WHOLE_KEYS:
            _check(key, value, _is_whole(value), "a whole number")
        elif key.endswith("accuracy"):
            _check(key, value, _is_number(value) and 0 <= value <= 1, "0..1")
        elif key in NUMBER_KEYS or "/" in key:
            _check(key, value, _is_number(value), "a number")


def check_epoch(row: Mapping[str, Any]) -> None:
    """Raises ValueError unless an object of metrics.jsonl or steps.jsonl fits.

    It needs an epoch; its other values are numbers or null.
    """
    _check("epoch", row.get("epoch"), _is_whole(row.get("epoch")), "a whole number")
    for key, value in row.items():
        _check(key, value, value is None or _is_number(value), "a number")


def check_step(row: Mapping[str, Any]) -> None:
    """Raises ValueError unless an object of steps.jsonl has a step."""
    _check("step", row.get("step"), _is_whole(row.get("step")), "a whole number")


def check_environment(content: Mapping[str, Any]) -> None:
    """Raises ValueError unless the keys of env.json that commands read fit their types."""
    attempts = content.get("attempts", 0)
    _check("attempts", attempts, _is_whole(attempts), "a whole number")
    for key in ("data", "versions"):
        section = content.get(key, {})
        _check(key, section, isinstance(section, Mapping), "a mapping")
        for name, value in section.items():
            _check(f"{key}.{name}", value, isinstance(value, str | None), "text")


def _check(key: str, value: Any, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ValueError(f"{key} is {_show(value)}, expected {expected}")


def _show(value: Any) -> str:
    return shorten(format_value(value), MAX_SHOWN_CHARS)


def _is_whole(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_WHOLE


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= MAX_NUMBER  # false for NaN
