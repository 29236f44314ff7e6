"""The one door from YAML to Python values: plain containers in, schema classes out, every problem collected."""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from vggexp.config import schema
from vggexp.shapes import Block

GROUP_CLASSES: dict[str, tuple[type, ...]] = {
    "arch": (schema.Vgg, schema.LeNet, schema.AlexNet),
    "data": (schema.Data, schema.Synthetic, schema.ImageFolder),
    "scheduler": (schema.Constant, schema.Step, schema.Cosine, schema.OneCycle, schema.Plateau),
}


class Problems(list[str]):
    """Collects problems; `value` returns a placeholder that no caller uses, since problems end the command."""

    def value(self, problem: str) -> Any:
        self.append(problem)
        return None


def shown(value: object) -> str:
    """A value as it is typed on the command line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(shown, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{shown(item)}" for key, item in value.items()) + "}"
    return str(value)


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`nearest a, b; ` or nothing."""
    by_lower = {option.lower(): option for option in allowed}
    close = [by_lower[match] for match in get_close_matches(word.lower(), list(by_lower), n=2, cutoff=0.6)]
    return f"nearest {', '.join(close)}; " if close else ""


def _number(kind: type, value: Any, key: str, limits: schema.Range | None, problems: Problems) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    if kind is int and not whole:
        hint = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        return problems.value(f"{key}={shown(value)}: not a whole number{hint}")
    if not whole and not (isinstance(value, float) and math.isfinite(value)):
        return problems.value(f"{key}={shown(value)}: must be a finite number")
    if limits is not None and value not in limits:
        return problems.value(f"{key}={shown(value)}: must be {limits}")
    return kind(value)


def _block(value: Any, key: str, problems: Problems) -> Any:
    if not isinstance(value, list | tuple) or len(value) not in (2, 3):
        return problems.value(f"{key}={shown(value)}: needs [convolutions,channels] or [convolutions,channels,1x1s]")
    limits = (schema.Range(1, 64), schema.Range(1, 65536), schema.Range(0, 64))
    before = len(problems)
    numbers = [_number(int, item, f"{key}[{index}]", limits[index], problems) for index, item in enumerate(value)]
    if len(problems) > before:
        return None
    block = Block(*numbers)
    if block.pointwise > block.convs:
        return problems.value(f"{key}={shown(value)}: {block.pointwise} 1x1 of {block.convs} convolutions")
    return block


def _sequence(item: Any, value: Any, key: str, problems: Problems) -> Any:
    if isinstance(value, str) and value.startswith("("):
        written = value.replace("(", "[").replace(")", "]").replace(" ", "")
        return problems.value(f"{key}={value}: YAML has no tuples; write {written}")
    if not isinstance(value, list | tuple):
        return problems.value(f"{key}={shown(value)}: must be a list")
    return tuple(convert(item, element, f"{key}[{index}]", problems) for index, element in enumerate(value))


def convert(kind: Any, value: Any, key: str, problems: Problems) -> Any:
    """`value` as the annotated type `kind`; a misfit is added to `problems`."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else convert(args[0], value, key, problems)
    if origin is Annotated:
        return _number(args[0], value, key, args[1], problems)
    if origin is Literal:
        if value in args and isinstance(value, str):
            return value
        return problems.value(f"{key}={shown(value)}: {nearest(str(value), args)}allowed {', '.join(args)}")
    if origin is tuple:
        return _sequence(args[0], value, key, problems)
    if kind is Block:
        return _block(value, key, problems)
    if kind in (int, float):
        return _number(kind, value, key, None, problems)
    if kind is bool and not isinstance(value, bool):
        return problems.value(f"{key}={shown(value)}: must be true or false")
    if kind is str and (not isinstance(value, str) or not value):
        return problems.value(f"{key}={shown(value)}: must be text")
    return value


def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def member(group: str, node: Mapping[str, Any], problems: Problems) -> type | None:
    """The schema class of a group whose members differ, chosen by `name`."""
    names = {name: cls for cls in GROUP_CLASSES[group] for name in get_args(_hints(cls)["name"])}
    name = node.get("name")
    if name in names:
        return names[name]
    convert(Literal[tuple(names)], name, f"{group}.name", problems)
    return None


def section(cls: type, node: Any, path: str, problems: Problems) -> Any:
    """Fills the schema class `cls` from the mapping `node`."""
    if not isinstance(node, Mapping):
        return problems.value(f"{path}={shown(node)}: a group of keys; set {path}.{next(iter(_hints(cls)))}, ...")
    hints = _hints(cls)
    prefix = f"{path}." if path else ""
    for key in node:
        if key not in hints:
            keys = ", ".join(hints)
            problems.append(f"{prefix}{key}: unknown key; {nearest(str(key), hints)}keys: {keys}")
    values = {}
    for key, kind in hints.items():
        if key not in node:
            problems.append(f"{prefix}{key}: missing; it may not be removed")
        else:
            values[key] = _field(kind, node[key], f"{prefix}{key}", problems)
    return None if problems else cls(**values)


def _field(kind: Any, value: Any, path: str, problems: Problems) -> Any:
    if path in GROUP_CLASSES:
        cls = member(path, value, problems) if isinstance(value, Mapping) else GROUP_CLASSES[path][0]
        return section(cls, value, path, problems) if cls else None
    if path == "optimizer" and isinstance(value, Mapping):
        own = ("name", "lr", "weight_decay")
        arguments = {key: item for key, item in value.items() if key not in own}
        value = {key: item for key, item in value.items() if key in own} | {"arguments": arguments}
    if dataclasses.is_dataclass(kind):
        return section(kind, value, path, problems)  # type: ignore[arg-type]
    if path == "optimizer.arguments":
        return dict(value)
    return convert(kind, value, path, problems)


def read(node: Mapping[str, Any], problems: Problems) -> schema.Config | None:
    """The whole configuration, or None with the reasons added to `problems`."""
    return section(schema.Config, node, "", problems)


def plain(value: Any) -> Any:
    """The reverse of `read`: dicts, lists and scalars, with the optimizer's arguments beside its other keys."""
    if isinstance(value, schema.Optimizer):
        shared = {"name": value.name, "lr": value.lr, "weight_decay": value.weight_decay}
        return shared | plain(value.arguments)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Block):
        return list(value if value.pointwise else value[:2])
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
