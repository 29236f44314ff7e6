import dataclasses
from collections.abc import Mapping
from typing import Any

from vggexp.config import schema
from vggexp.models.shapes import Block


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optimizer": {"lr": 0.1}} -> {"optimizer.lr": 0.1}."""
    keys: dict[str, Any] = {}
    for key, value in node.items():
        keys |= (
            flatten(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {f"{prefix}{key}": value}
        )
    return keys


def unflatten(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `flat`. Raises AttributeError or TypeError where a key is a value and a section at once."""
    tree: dict[str, Any] = {}
    for key, value in keys.items():
        *sections, last = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    return tree


def to_plain(value: Any) -> Any:
    """The reverse of `read`: dicts, lists and scalars, with the optimizer's arguments beside its other keys."""
    if isinstance(value, schema.Optimizer):
        shared = {"name": value.name, "lr": value.lr, "weight_decay": value.weight_decay}
        return shared | to_plain(value.arguments)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: to_plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Block):
        return list(value if value.pointwise else value[:2])
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value
