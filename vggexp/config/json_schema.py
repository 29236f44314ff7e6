"""Makes the JSON Schema of conf/ and of a user's own YAML, so that editors know every key.

Types, ranges and choices are those of vggexp.config.schema, descriptions are the comments of conf/.
The rules that join several keys are not in it: vggexp.config.validate has them.
"""

import dataclasses
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from vggexp.config import schema
from vggexp.config.comments import (
    GROUPS,
    EntriesByKey,
    group_files,
    meaning,
    member_entries,
    read_entries,
)
from vggexp.config.parse import BLOCK_LIMITS, GROUP_CLASSES
from vggexp.models.shapes import Block

JsonSchema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"  # the newest one that every editor knows
# Or Hydra's mark for a value that the command has to give.
INTERPOLATION: JsonSchema = {"type": "string", "pattern": r"\$\{|^\?\?\?$"}
REFERENCE = {"$ref": "#/definitions/interpolation"}
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object"}
CHOSEN_GROUPS = (*GROUPS, "experiment", "sweep")


def json_schema() -> JsonSchema:
    """Returns the schema of a whole configuration, which experiments and sweeps share.

    `#/definitions/arch` describes the files of conf/arch, and so on. Keys may be missing, since a
    file holds a part of a configuration. Every value may be an interpolation.
    """
    entries = read_entries()
    definitions: JsonSchema = {"interpolation": INTERPOLATION, "defaults": _defaults_list()}
    for group in GROUPS:
        definitions[group] = _group_file(group, entries)
    definitions["config"] = _config(entries)
    return {"$schema": DRAFT, "$ref": "#/definitions/config", "definitions": definitions}


def _config(entries: EntriesByKey) -> JsonSchema:
    """Describes a file that sets keys of several groups."""
    sections: JsonSchema = {"defaults": {"$ref": "#/definitions/defaults"}}
    for name, annotation in get_type_hints(schema.Config, include_extras=True).items():
        if name in GROUPS:
            sections[name] = _group_section(name, entries)
        elif isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
            sections[name] = _section(annotation, name, entries)
        else:
            sections[name] = _described(annotation, name, entries)
    sections["hydra"] = {"description": "settings of Hydra", "type": ["object", "null"]}
    return {
        "title": "vggexp: a configuration, an experiment or a sweep",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
    }


def _defaults_list() -> JsonSchema:
    """Describes Hydra's list of chosen files. A user's own file may be chosen too."""
    choices: JsonSchema = {}
    for group in CHOSEN_GROUPS:
        shipped = {"enum": [path.stem for path in group_files(group)]}
        choice = {"anyOf": [shipped, {"type": ["string", "null", "array"]}]}
        choices[group] = choice
        choices[f"override /{group}"] = choice
    chosen = {"type": "object", "properties": choices}
    return {
        "description": "files that this one is composed from; a later one wins",
        "type": "array",
        "items": {"anyOf": [{"type": "string"}, chosen]},
    }


def _group_file(group: str, entries: EntriesByKey) -> JsonSchema:
    """Describes a file of a group. Without `name` it belongs to the group's first class."""
    first, *others = _group_section(group, entries)["anyOf"]
    members = [first, *({**member, "required": ["name"]} for member in others)]
    for member in members:
        member["properties"]["defaults"] = {"$ref": "#/definitions/defaults"}
    return {"title": f"vggexp: a file of {group}", "anyOf": members}


def _group_section(group: str, entries: EntriesByKey) -> JsonSchema:
    """Describes the section of a group, whose `name` selects the class that has its keys."""
    hints = get_type_hints(schema.Config, include_extras=True)
    classes = GROUP_CLASSES.get(group, (hints[group],))
    members = [_section(cls, group, entries) for cls in classes]
    for member in members[1:]:
        if member["additionalProperties"]:  # would accept any key of the other classes
            member["required"] = ["name"]
    return {"anyOf": members}


def _section(cls: type, path: str, entries: EntriesByKey) -> JsonSchema:
    """Describes the keys of a schema class."""
    hints = get_type_hints(cls, include_extras=True)
    members = get_args(hints["name"]) if path in GROUP_CLASSES else ()
    properties: JsonSchema = {}
    is_open = False
    for field in dataclasses.fields(cls):
        if schema.is_rest_field(field):
            is_open = True
        else:
            key = f"{path}.{field.name}"
            properties[field.name] = _described(hints[field.name], key, entries, members)
    if is_open:
        properties |= _other_arguments(path, properties, entries)
    return {"type": "object", "properties": properties, "additionalProperties": is_open}


def _other_arguments(path: str, known: JsonSchema, entries: EntriesByKey) -> JsonSchema:
    """Describes keys that files of conf/ set and the schema leaves to a class of torch.optim."""
    arguments: JsonSchema = {}
    for key, found in entries.items():
        section, _, name = key.rpartition(".")
        if section == path and name not in known:
            arguments[name] = {"description": meaning(found)}
    return arguments


def _described(
    annotation: Any,
    key: str,
    entries: EntriesByKey,
    members: tuple[str, ...] = (),
) -> JsonSchema:
    """Describes the value of a key: its type, or an interpolation.

    Args:
        members: values of `name` for which the group has this key; empty: all.
    """
    found = member_entries(key, members, entries) if members else entries.get(key, [])
    value = {"anyOf": [_value(annotation), REFERENCE]}
    description = meaning(found)
    return {"description": description, **value} if description else value


def _value(annotation: Any) -> JsonSchema:
    """Describes the values that vggexp.config.parse accepts for a field of this type."""
    origin = get_origin(annotation)
    arguments = get_args(annotation)
    if origin in (Union, UnionType):
        (optional,) = (argument for argument in arguments if argument is not NoneType)
        return _or_null(_value(optional))
    if origin is Annotated:
        return {"type": TYPES[arguments[0]], **_bounds(arguments[1])}
    if origin is Literal:
        return {"enum": list(arguments)}
    if annotation is Block:
        numbers = [{"type": "integer", **_bounds(limits)} for limits in BLOCK_LIMITS.values()]
        return {"type": "array", "items": numbers, "additionalItems": False, "minItems": 2}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0])}
    if origin is dict:
        return {"type": "object", "minProperties": 1}
    if annotation is str:
        return {"type": "string", "minLength": 1}
    return {"type": TYPES[annotation]}


def _or_null(value: JsonSchema) -> JsonSchema:
    if "enum" in value:
        return {"enum": [*value["enum"], None]}
    return {**value, "type": [value["type"], "null"]}


def _bounds(limits: schema.Range) -> JsonSchema:
    low = "exclusiveMinimum" if limits.open_low else "minimum"
    high = "exclusiveMaximum" if limits.open_high else "maximum"
    return {low: limits.low, high: limits.high}
