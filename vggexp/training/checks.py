"""Checks of values from outside: functions that take the name of a value and the value.

Each raises ValueError with the name, the value and what is expected. The functions that return a
`Check` make one for a range, a list or a dictionary.
"""

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor

from vggexp.formatting import shorten

MAX_DEPTH = 6  # of lists and dictionaries inside a plain value
MAX_VALUE_CHARS = 40  # of a value in an error text
MAX_WHOLE_SHOWN = 10**24  # Python prints no number of any size

Check = Callable[[str, Any], None]


def fields(checks: Mapping[Any, Check]) -> Check:
    """Returns a check for a dictionary with these fields. More are allowed."""

    def check(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            refuse(name, value, "a dictionary")
        for key, check_value in checks.items():
            path = f"{name}.{key}".lstrip(".")
            if key not in value:
                raise ValueError(f"{path} is missing")
            check_value(path, value[key])

    return check


def list_of(check_item: Check, low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not list or not low <= len(value) <= high:
            refuse(name, value, f"a list of {low}..{high} values")
        for index, item in enumerate(value):
            check_item(f"{name}.{index}", item)

    return check


def dict_of(check_item: Check, check_key: Check | None = None) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, dict):
            refuse(name, value, "a dictionary")
        for key, item in value.items():
            (check_key or text)(f"a key of {name}", key)
            check_item(f"{name}.{key}", item)

    return check


def whole(low: int, high: int) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(name, value, str(low) if low == high else f"a whole number of {low}..{high}")

    return check


def exactly(expected: int) -> Check:
    return whole(expected, expected)


def number(low: float = -sys.float_info.max, high: float = sys.float_info.max) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) not in (int, float) or not low <= value <= high:
            bounds = "" if low < 0 else f" of {low} or more"
            if high < sys.float_info.max:
                bounds = f" of {low}..{high}"
            refuse(name, value, f"a finite number{bounds}")

    return check


def choice(*choices: str) -> Check:
    def check(name: str, value: Any) -> None:
        if type(value) is not str or value not in choices:
            refuse(name, value, f"one of {', '.join(choices)}")

    return check


def text(name: str, value: Any) -> None:
    if type(value) is not str:
        refuse(name, value, "a text")


def plain(name: str, value: Any, depth: int = 0) -> None:
    """Checks a value of the configuration."""
    if depth > MAX_DEPTH:
        raise ValueError(f"{name} is nested more than {MAX_DEPTH} deep")
    if isinstance(value, list | tuple):
        for index, item in enumerate(value):
            plain(f"{name}.{index}", item, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            text(f"a key of {name}", key)
            plain(f"{name}.{key}", item, depth + 1)
    elif value is not None and type(value) not in (bool, str):
        number()(name, value)


def tensor(name: str, value: Any) -> None:
    """Checks that a tensor is dense, in memory, and as large in the file as its shape says."""
    if not isinstance(value, Tensor):
        refuse(name, value, "a tensor")
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
        refuse(name, value, "a dense tensor in memory")
    if value.untyped_storage().nbytes() < value.nbytes:
        raise ValueError(f"{name} has fewer values than its shape says")


def finite(name: str, tensor: Tensor) -> None:
    if not tensor.isfinite().all():
        raise ValueError(
            f"{name} holds NaN or infinity: the run had diverged, or the file was changed"
        )


def refuse(name: str, value: Any, expected: str) -> NoReturn:
    raise ValueError(f"{name or 'the content'} is {describe(value)}, expected {expected}")


def describe(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and abs(value) > MAX_WHOLE_SHOWN:
        return "a whole number that is too large"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN or infinity"
    return shorten(repr(value), MAX_VALUE_CHARS)
