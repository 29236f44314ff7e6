"""Converts configurations between schema classes, nested dictionaries and flat keys."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vggexp.config.schema import is_rest_field
from vggexp.models.shapes import Block


def flatten(
    node: Mapping[str, Any],
    prefix: str = "",
) -> dict[str, Any]:
    """Converts {"optimizer": {"lr": 0.1}} into {"optimizer.lr": 0.1}."""
    keys: dict[str, Any] = {}
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            keys |= flatten(value, f"{path}.")
        else:
            keys[path] = value
    return keys


def unflatten(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Reverses `flatten`.

    Raises:
        AttributeError, TypeError: a key is a value and a section at once.
    """
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def to_plain(value: Any) -> Any:
    """Converts schema classes to dicts, lists and scalars: reverses vggexp.config.parse.

    The optimizer's arguments stand beside its other keys.
    """
    if value is None or isinstance(value, str | int | float):  # most values, and the quickest test
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        plain: dict[str, Any] = {}
        for field in dataclasses.fields(value):
            item = to_plain(getattr(value, field.name))
            if is_rest_field(field):
                plain |= item
            else:
                plain[field.name] = item
        return plain
    if isinstance(value, Block):
        return list(value) if value.pointwise else [value.convs, value.channels]
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def varying_keys(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the keys with more than one value among the rows, in the order of the command."""
    keys: dict[str, None] = {}  # an ordered set
    for row in rows:
        keys |= dict.fromkeys(row)
    return [key for key in keys if len({row.get(key) for row in rows}) > 1]
