"""The one door from YAML to Python values: plain containers in, schema classes out, every problem collected."""

import dataclasses
import math
import types
from collections.abc import Iterable, Mapping
from difflib import SequenceMatcher
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from vggexp.config import schema
from vggexp.formatting import format_value
from vggexp.models.shapes import Block

GROUP_CLASSES: dict[str, tuple[type, ...]] = {
    "arch": (schema.Vgg, schema.LeNet, schema.AlexNet),
    "data": (schema.Data, schema.Synthetic, schema.ImageFolder),
    "scheduler": (schema.Constant, schema.Step, schema.Cosine, schema.OneCycle, schema.Plateau),
}


class Invalid:
    """In place of a value that could not be read. Whoever asks for more than its identity gets a TypeError or an
    AttributeError, which ends the rule that asked and no other."""

    def __bool__(self) -> bool:
        raise TypeError("not read")


class ErrorList(list[str]):
    """Collects problems; `value` returns the placeholder of the value that has one."""

    def value(self, problem: str) -> Any:
        self.append(problem)
        return Invalid()


def close_matches(word: str, allowed: Iterable[str]) -> list[str]:
    """At most two, the most alike first; of equals the first."""
    likeness = {
        option: SequenceMatcher(None, word.lower(), option.lower()).ratio() for option in allowed
    }
    return sorted(
        (option for option in likeness if likeness[option] >= 0.6),
        key=lambda option: -likeness[option],
    )[:2]


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """`nearest a, b; ` or nothing."""
    close = close_matches(word, allowed)
    return f"nearest {', '.join(close)}; " if close else ""


def _number(
    kind: type, value: Any, key: str, limits: schema.Range | None, problems: ErrorList
) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool)
    allowed = "" if limits is None else f", {limits}"
    if kind is int and not whole:
        meant = _intended_int(value)
        hint = allowed.replace(",", "; must be", 1) if meant is None else f"; write {meant}"
        return problems.value(f"{key}={format_value(value)}: not a whole number{hint}")
    if not whole and not (isinstance(value, float) and math.isfinite(value)):
        return problems.value(f"{key}={format_value(value)}: must be a finite number{allowed}")
    if limits is not None and value not in limits:
        return problems.value(f"{key}={format_value(value)}: must be {limits}")
    return kind(value)


def _intended_int(value: Any) -> int | None:
    """The whole number that 1e3, 007, 0x10 or "12" stand for."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    try:
        return int(value, 16 if value.startswith("0x") else 10) if isinstance(value, str) else None
    except ValueError:
        return None


def _block(value: Any, key: str, problems: ErrorList) -> Any:
    if not isinstance(value, list | tuple) or len(value) not in (2, 3):
        return problems.value(
            f"{key}={format_value(value)}: needs [convolutions,channels] or [convolutions,channels,1x1s]"
        )
    limits = {
        "convolutions": schema.Range(1, 64),
        "channels": schema.Range(1, 65536),
        "1x1s": schema.Range(0, 64),
    }
    before = len(problems)
    parts = zip(value, limits, strict=False)
    numbers = [
        _number(int, item, f"{key}={format_value(value)}: {name}", limits[name], problems)
        for item, name in parts
    ]
    if len(problems) > before:
        return Invalid()
    block = Block(*numbers)
    if block.pointwise > block.convs:
        return problems.value(
            f"{key}={format_value(value)}: 1x1s={block.pointwise}: more than its convolutions"
        )
    return block


def _row_hint(item: Any, value: Any, key: str) -> str:
    if item is Block:
        return f", as {key}=[[1,64],[2,128]]"
    return f"; write {key}=[{value}]" if isinstance(value, int | float) else ""


def _sequence(item: Any, value: Any, key: str, problems: ErrorList) -> Any:
    if isinstance(value, str) and value.startswith("("):
        written = value.replace("(", "[").replace(")", "]").replace(" ", "")
        return problems.value(f"{key}={value}: YAML has no tuples; write {written}")
    if not isinstance(value, list | tuple):
        return problems.value(
            f"{key}={format_value(value)}: must be a list{_row_hint(item, value, key)}"
        )
    if item is Block and value and all(isinstance(number, int) for number in value):
        return problems.value(
            f"{key}={format_value(value)}: needs a list of rows; write {key}=[{format_value(value)}]"
        )
    return tuple(
        convert(item, element, f"{key}[{index}]", problems) for index, element in enumerate(value)
    )


def convert(kind: Any, value: Any, key: str, problems: ErrorList) -> Any:
    """`value` as the annotated type `kind`; a misfit is added to `problems`."""
    origin = get_origin(kind)
    args = get_args(kind)
    if origin in (Union, types.UnionType):
        return None if value is None else _optional(args[0], value, key, problems)
    if origin is Annotated:
        return _number(args[0], value, key, args[1], problems)
    if origin is Literal:
        if value in args and isinstance(value, str):
            return value
        return problems.value(
            f"{key}={format_value(value)}: {did_you_mean(str(value), args)}allowed {', '.join(args)}"
        )
    if origin is tuple:
        return _sequence(args[0], value, key, problems)
    if kind is Block:
        return _block(value, key, problems)
    if origin is dict:
        fits = isinstance(value, Mapping) and value
        return (
            dict(value)
            if fits
            else problems.value(
                f"{key}={format_value(value)}: needs keys and values, as {{seed:1}}"
            )
        )
    if kind in (int, float):
        return _number(kind, value, key, None, problems)
    if kind is bool and not isinstance(value, bool):
        return problems.value(f"{key}={format_value(value)}: must be true or false")
    if kind is str and (not isinstance(value, str) or not value):
        quoted = (
            f"; put it into quotes: '{key}=\"{value}\"'" if isinstance(value, int | float) else ""
        )
        return problems.value(f"{key}={format_value(value)}: must be text{quoted}")
    return value


def _optional(kind: Any, value: Any, key: str, problems: ErrorList) -> Any:
    before = len(problems)
    end = str(get_args(kind)[-1]) if get_origin(kind) is Annotated else "must be text"
    converted = convert(kind, value, key, problems)
    problems[before:] = [
        f"{told} or null" if told.endswith(end) else told for told in problems[before:]
    ]
    return converted


@cache
def _hints(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def select_schema(group: str, node: Mapping[str, Any], problems: ErrorList) -> type | Invalid:
    """The schema class of a group whose members differ, chosen by `name`."""
    names = {name: cls for cls in GROUP_CLASSES[group] for name in get_args(_hints(cls)["name"])}
    name = node.get("name")
    if name is None:
        return problems.value(f"{group}: no file of this group is chosen; see --help")
    if isinstance(name, str) and name in names:
        return names[name]
    return convert(Literal[tuple(names)], name, f"{group}.name", problems)


@cache
def schema_keys(cls: Any = schema.Config, path: str = "") -> tuple[str, ...]:
    """The full names of the keys that some configuration has, without an optimizer's own."""
    keys: list[str] = []
    for name, kind in _hints(cls).items():
        members: tuple[Any, ...] = GROUP_CLASSES.get(f"{path}{name}", (kind,))
        sections: list[Any] = [member for member in members if dataclasses.is_dataclass(member)]
        keys += [key for member in sections for key in schema_keys(member, f"{path}{name}.")] or [
            f"{path}{name}"
        ]
    return tuple(dict.fromkeys(keys))


def _unknown(key: str, siblings: Iterable[str], path: str, member: object) -> str:
    """For a key of the right name in the wrong section the right one is told, else what is alike beside it."""
    full = f"{path}.{key}" if path else key
    there = f"keys{path and f' of {path}'}: {', '.join(siblings)}"
    if full in schema_keys():
        return f"{full}: not a key of {path} {format_value(member)}; {there}"
    elsewhere = [name for name in schema_keys() if name.rpartition(".")[2] == key]
    beside = (
        close_matches(key, siblings)
        if path
        else close_matches(key.replace("/", "."), schema_keys())
    )
    near = elsewhere or [f"{path}.{name}" if path else name for name in beside]
    told = f"nearest {', '.join(near)}; " if near else ""
    return f"{full}: unknown key; {told}{there}"


def parse_section(cls: type, node: Any, path: str, problems: ErrorList) -> Any:
    """Fills the schema class `cls` from the mapping `node`, with `Unread` where it cannot.

    A key that may be null need not be there: the run of an earlier version has no such option.
    """
    hints = _hints(cls)
    if not isinstance(node, Mapping):
        some = ", ".join(f"{path}.{key}" for key in list(hints)[:3])
        return problems.value(f"{path}={format_value(node)}: a group of keys; set {some}, ...")
    problems += [
        _unknown(str(key), hints, path, node.get("name")) for key in node if key not in hints
    ]
    values = {}
    for key, kind in hints.items():
        name = f"{path}.{key}" if path else key
        missing = f"{name}: missing; it may not be removed"
        if key in node:
            values[key] = _parse_field(kind, node[key], name, problems)
        else:
            values[key] = None if type(None) in get_args(kind) else problems.value(missing)
    return cls(**values)


def _parse_field(kind: Any, value: Any, path: str, problems: ErrorList) -> Any:
    if path in GROUP_CLASSES:
        cls = (
            select_schema(path, value, problems)
            if isinstance(value, Mapping)
            else GROUP_CLASSES[path][0]
        )
        return parse_section(cls, value, path, problems) if isinstance(cls, type) else cls
    if path == "optimizer" and isinstance(value, Mapping):
        own = ("name", "lr", "weight_decay")
        arguments = {key: item for key, item in value.items() if key not in own}
        value = {key: item for key, item in value.items() if key in own} | {"arguments": arguments}
    if dataclasses.is_dataclass(kind):
        return parse_section(kind, value, path, problems)  # type: ignore[arg-type]
    if path == "optimizer.arguments":
        return dict(value)
    return convert(kind, value, path, problems)


def parse_config(node: Mapping[str, Any], problems: ErrorList) -> schema.Config | None:
    """The whole configuration, or None with the reasons added to `problems`."""
    config = parse_partial(node, problems)
    return None if problems else config


def parse_partial(node: Mapping[str, Any], problems: ErrorList) -> schema.Config:
    """As `read`, but with `Unread` in place of what could not be read, so that the rules can look at the rest."""
    return parse_section(schema.Config, node, "", problems)
