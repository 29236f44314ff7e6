"""Converts plain YAML containers into the schema classes and collects every error."""

import dataclasses
import math
import shlex
import types
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from vggexp.config import schema
from vggexp.config.similarity import close_matches, did_you_mean
from vggexp.config.torchvision_arguments import name_problem
from vggexp.formatting import format_value
from vggexp.models.shapes import Block

# Groups whose files have different keys; the key `name` selects the class.
GROUP_CLASSES: dict[str, tuple[type, ...]] = {
    "arch": (schema.Vgg, schema.LeNet, schema.AlexNet),
    "data": (
        schema.Data,
        schema.Synthetic,
        schema.ImageFolder,
        schema.TorchvisionArrays,
        schema.TorchvisionFiles,
    ),
    "scheduler": (schema.Constant, schema.Step, schema.Cosine, schema.OneCycle, schema.Plateau),
}
BLOCK_LIMITS = {  # of the numbers in a row of arch.blocks
    "convolutions": schema.Range(1, 64),
    "channels": schema.Range(1, 65536),
    "1x1s": schema.Range(0, 64),
}
USUAL_CONVS = 8  # of a block; VGG has 4
USUAL_BLOCKS = 5  # of a network


class ErrorList(list[str]):
    """The text of every error, and in `paths` the keys whose values are invalid."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        super().__init__(texts)
        self.paths: set[str] = set()

    def add(
        self,
        path: str,
        text: str,
    ) -> None:
        """Adds an error that leaves the key `path` without a value."""
        self.append(text)
        self.paths.add(path)

    def reject(
        self,
        path: str,
        value: object,
        reason: str,
    ) -> None:
        """Adds the error `path=value: reason`."""
        self.add(path, f"{path}={format_value(value)}: {reason}")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number_error(
    number_type: type,
    value: Any,
    limits: schema.Range | None,
    nullable: bool = False,
) -> str | None:
    """Returns why `value` is not a number of this type within the limits."""
    allowed = "" if limits is None else str(limits)
    if allowed and nullable:
        allowed += " or null"
    if number_type is int and not _is_whole(value):
        intended = _intended_int(value)
        if intended is not None:
            return f"not a whole number; write {intended}"
        return f"not a whole number; must be {allowed}" if allowed else "not a whole number"
    is_finite = isinstance(value, float) and math.isfinite(value)
    if not _is_whole(value) and not is_finite:
        return f"must be a finite number, {allowed}" if allowed else "must be a finite number"
    if limits is not None and value not in limits:
        return f"must be {allowed}"
    return None


def _intended_int(value: Any) -> int | None:
    """Returns the whole number that 1e3, 007, 0x10 or "12" stands for."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return None
    try:
        return int(value, base=16 if value.startswith("0x") else 10)
    except ValueError:
        return None


def in_quotes(path: str, text: str) -> str:
    """Returns the word of a command line that sets a key to a text like 1e3 or true."""
    return shlex.quote(f'{path}="{text}"')


def _text_error(
    value: Any,
    path: str,
    nullable: bool,
) -> str | None:
    if isinstance(value, str) and value:
        return None
    if isinstance(value, int | float):
        return f"must be text; put it into quotes: {in_quotes(path, format_value(value))}"
    return "must be text or null" if nullable else "must be text"


def _scalar_error(
    annotation: Any,
    value: Any,
    path: str,
    nullable: bool,
) -> str | None:
    """Returns why `value` does not fit an annotation that is neither a tuple nor a Block."""
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin is Annotated:
        number_type, limits = args
        return _number_error(number_type, value, limits, nullable)
    if annotation in (int, float):
        return _number_error(annotation, value, None)
    if origin is Literal:
        if isinstance(value, str) and value in args:
            return None
        return f"{did_you_mean(str(value), args)}allowed {', '.join(args)}"
    if origin is dict:
        is_filled = isinstance(value, Mapping) and value
        return None if is_filled else "needs keys and values, as {seed:1}"
    if annotation is bool and not isinstance(value, bool):
        return "must be true or false"
    if annotation is str:
        return _text_error(value, path, nullable)
    return None


def _parse_block(
    value: Any,
    path: str,
    errors: ErrorList,
) -> Block | None:
    if not isinstance(value, list | tuple) or len(value) not in (2, 3):
        row_forms = "[convolutions,channels] or [convolutions,channels,1x1s]"
        errors.reject(path, value, f"needs {row_forms}")
        return None
    is_valid = True
    for number, (name, limits) in zip(value, BLOCK_LIMITS.items(), strict=False):
        reason = _number_error(int, number, limits)
        if reason is not None:
            errors.reject(path, value, f"{name}={format_value(number)}: {reason}")
            is_valid = False
    if not is_valid:
        return None
    block = Block(*value)
    if block.pointwise > block.convs:
        reason = f"1x1s={block.pointwise}: more than its convolutions"
        errors.reject(path, value, reason)
        return None
    return block


def _list_error(
    item_type: Any,
    value: Any,
    path: str,
) -> str | None:
    """Returns why `value` is not a list of `item_type`, apart from the items themselves."""
    if isinstance(value, str) and value.startswith("("):
        brackets = value.replace("(", "[").replace(")", "]").replace(" ", "")
        return f"YAML has no tuples; write {brackets}"
    if not isinstance(value, list | tuple):
        if item_type is Block:
            return f"must be a list, as {path}=[[1,64],[2,128]]"
        return "must be a list" + _list_advice(item_type, [_intended_int(value) or value], path)
    if item_type is Block and value and all(map(_is_whole, value)):
        for rows in _intended_rows(list(value)):
            if advice := _list_advice(item_type, rows, path):
                return f"needs a list of rows{advice}"
        return f"needs a list of rows, as {path}=[[1,64],[2,128]]"
    return None


def _intended_rows(numbers: list[int]) -> Iterator[list[list[int]]]:
    """Yields the rows of arch.blocks that a list of numbers may stand for, the likeliest first."""
    if numbers[0] <= USUAL_CONVS:
        yield [numbers]  # a single row
    if len(numbers) > USUAL_BLOCKS:
        return
    if max(numbers) <= USUAL_CONVS:  # the convolutions of each block; the channels are VGG's
        yield [[convs, min(64 * 2**index, 512)] for index, convs in enumerate(numbers)]
    if min(numbers) > USUAL_CONVS:  # the channels of each block
        yield [[1, channels] for channels in numbers]


def _list_advice(item_type: Any, items: list[Any], path: str) -> str:
    """Returns the word that sets a key to a list of these items, if all of them are valid."""
    errors = ErrorList()
    for item in items:
        convert(item_type, item, path, errors)
    return "" if errors else "; write " + shlex.quote(f"{path}={format_value(items)}")


def convert(
    annotation: Any,
    value: Any,
    path: str,
    errors: ErrorList,
    nullable: bool = False,
) -> Any:
    """Converts the value of one key to its annotated type.

    Returns None and adds an error if the value does not fit.

    Args:
        path: the key with its sections, as `data.resize`.
        nullable: whether error texts name null among the allowed values.
    """
    origin = get_origin(annotation)
    args = get_args(annotation)
    if origin in (Union, types.UnionType):
        return None if value is None else convert(args[0], value, path, errors, nullable=True)
    if annotation is Block:
        return _parse_block(value, path, errors)
    if origin is tuple:
        reason = _list_error(args[0], value, path)
    else:
        reason = _scalar_error(annotation, value, path, nullable)
    if reason is not None:
        errors.reject(path, value, reason)
        return None
    if origin is tuple:
        items = [convert(args[0], item, f"{path}[{i}]", errors) for i, item in enumerate(value)]
        return tuple(items)
    number_type = args[0] if origin is Annotated else annotation
    return float(value) if number_type is float else value


@cache
def _annotations(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


@cache
def _rest_field(cls: type) -> str | None:
    """Returns the field that holds all keys without a field of their own."""
    for field in dataclasses.fields(cls):
        if schema.is_rest_field(field):
            return field.name
    return None


def select_schema(
    group: str,
    node: Mapping[str, Any],
    errors: ErrorList,
) -> type | None:
    """Returns the schema class of a group whose files have different keys, selected by `name`."""
    classes: dict[str, type] = {}
    for cls in GROUP_CLASSES[group]:
        for name in get_args(_annotations(cls)["name"]):
            classes[name] = cls
    name = node.get("name")
    if isinstance(name, str) and name in classes:
        return classes[name]
    if name is None:
        errors.add(group, f"{group}: no file of this group is chosen; see --help")
    elif group == "data" and (problem := name_problem(str(name))):
        errors.add(group, problem)
    else:
        reason = _scalar_error(Literal[tuple(classes)], name, group, False)
        errors.add(group, f"{group}.name={format_value(name)}: {reason}")
    return None


@cache
def schema_keys(cls: Any = schema.Config, path: str = "") -> Mapping[str, Any]:
    """Returns the annotation of each key of all groups by its full name.

    The arguments of an optimizer of its own are not among the keys.
    """
    keys: dict[str, Any] = {}
    for name, annotation in _annotations(cls).items():
        key = f"{path}{name}"
        classes: tuple[Any, ...] = GROUP_CLASSES.get(key, (annotation,))
        if dataclasses.is_dataclass(classes[0]):
            for section in classes:
                for own_key, kind in schema_keys(section, f"{key}.").items():
                    keys[own_key] = keys.get(own_key, kind) | kind
        else:
            keys[key] = annotation
    return keys


def keys_named(name: str) -> list[str]:
    """Returns the keys of this name in any section: optimizer.lr for lr."""
    return [known for known in schema_keys() if known.rpartition(".")[2] == name]


def settings_named(name: str, value: str) -> str:
    """Returns the words that set the keys of this name, such as `optimizer.lr=0.1` for lr.

    A key that only some files of a group have comes with such a file. `name` itself is a choice of
    files, except that of a run.
    """
    words = []
    choices = []
    for key in keys_named(name):
        group = key.partition(".")[0]
        classes = GROUP_CLASSES.get(group, ())
        setting = shlex.quote(f"{key}={value}")
        if name == "name" and group != "run":
            continue
        if not classes or name in _annotations(classes[0]):
            words.append(setting)
            continue
        owner = next(cls for cls in classes if name in _annotations(cls))
        if owner not in get_args(schema.Torchvision):  # which needs the name of a data set too
            choices.append(f"{group}={get_args(_annotations(owner)['name'])[0]} {setting}")
    return " or ".join(words or choices)


def section_advice(path: str, keys: Iterable[str]) -> str:
    """Returns what to write instead of a value for a whole section."""
    examples = ", ".join(f"{path}.{key}" for key in list(keys)[:3])
    return f"a group of keys; set {examples}, ..."


def _similar_keys(key: str, siblings: Iterable[str], path: str) -> list[str]:
    """Returns the keys of the same name in any section, otherwise similar keys of this section.

    At the top these are the sections and all keys.
    """
    if same_name := keys_named(key):
        return same_name
    if not path:
        return close_matches(key.replace("/", "."), ["experiment", *siblings, *schema_keys()])
    return [f"{path}.{name}" for name in close_matches(key, siblings)]


def _unknown_key_errors(
    key: str,
    value: object,
    siblings: Iterable[str],
    path: str,
    member: object,
) -> Iterator[str]:
    """Describes a key that the section does not have, or each key of a section that is unknown.

    Args:
        siblings: the keys of the section.
        path: the section.
        member: the `name` in the section, which selects its keys.
    """
    full_name = f"{path}.{key}" if path else key
    section = f"keys of {path}" if path else "keys"
    known = f"{section}: {', '.join(siblings)}"
    if full_name in schema_keys():
        yield f"{full_name}: not a key of {path} {format_value(member)}; {known}"
        return
    inner = value if isinstance(value, Mapping) and not path else {}
    for name, item in inner.items():
        words = settings_named(str(name), format_value(item))
        if words and not isinstance(item, Mapping):
            yield f"{full_name}.{name}: unknown key; write {words}; {known}"
        else:
            yield f"{full_name}.{name}: unknown key; {known}"
    if not inner:
        similar = _similar_keys(key, siblings, path)
        nearest = f"nearest {', '.join(similar)}; " if similar else ""
        yield f"{full_name}: unknown key; {nearest}{known}"


def parse_section(
    cls: type,
    node: Any,
    path: str,
    errors: ErrorList,
) -> Any:
    """Fills the schema class `cls` from the mapping `node`.

    Each invalid value adds an error, and its field is None. A section that is not a mapping is
    None. A key that may be null may be missing: a run of an earlier version lacks newer options.
    """
    annotations = _annotations(cls)
    if not isinstance(node, Mapping):
        errors.reject(path, node, section_advice(path, annotations))
        return None
    rest_field = _rest_field(cls)
    named = [key for key in annotations if key != rest_field]
    rest = {key: value for key, value in node.items() if key not in named}
    values: dict[str, Any] = {}
    if rest_field is not None:
        values[rest_field] = rest
    else:
        for key in rest:
            errors.extend(_unknown_key_errors(str(key), rest[key], named, path, node.get("name")))
    for key in named:
        key_path = f"{path}.{key}" if path else key
        if key in node:
            values[key] = _parse_field(annotations[key], node[key], key_path, errors)
            continue
        values[key] = None
        if type(None) not in get_args(annotations[key]):
            errors.add(key_path, f"{key_path}: missing; it may not be removed")
    return cls(**values)


def _parse_field(
    annotation: Any,
    value: Any,
    path: str,
    errors: ErrorList,
) -> Any:
    if path in GROUP_CLASSES:
        cls: type | None = GROUP_CLASSES[path][0]
        if isinstance(value, Mapping):
            cls = select_schema(path, value, errors)
        return None if cls is None else parse_section(cls, value, path, errors)
    if dataclasses.is_dataclass(annotation):
        return parse_section(annotation, value, path, errors)  # type: ignore[arg-type]
    return convert(annotation, value, path, errors)


def parse_config(node: Mapping[str, Any]) -> tuple[schema.Config | None, ErrorList]:
    """Returns the configuration and no error, or None and every error."""
    config, errors = parse_partial(node)
    return None if errors else config, errors


def parse_partial(node: Mapping[str, Any]) -> tuple[schema.Config, ErrorList]:
    """Returns a configuration in which every key of `errors.paths` is None, and the errors.

    vggexp.config.validate checks the remaining keys, so that one command reports all errors.
    """
    errors = ErrorList()
    config = parse_section(schema.Config, node, "", errors)
    return config, errors
