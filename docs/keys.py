"""Makes the page of every key from the schema and conf/: `python docs/keys.py > docs/keys.md`.

Types and ranges are those of the schema. Values and their meaning are those of conf/: the meaning
of a key is the comment behind its value, in the default file of the group or in the first file
that has a comment. The unit of a key is the first word of measure in its name, otherwise in
the comment.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from vggexp.config import schema
from vggexp.config.comments import (
    GROUPS,
    EntriesByKey,
    Entry,
    default_files,
    group_files,
    meaning,
    member_entries,
    read_entries,
    read_lines,
)
from vggexp.config.parse import GROUP_CLASSES
from vggexp.formatting import format_value
from vggexp.models.shapes import Block

DEFAULTS = default_files()
UNIT = re.compile(
    r"\b(?:pixels|minutes|epochs|steps|images|micro-batches|processes|threads|blocks|jobs|runs"
    r"|classes|channels|neurons|probability|share|factor|accuracy)\b"
)
KEYS_BY_FILE = (  # whose value or meaning depends on the file
    "device.precision",
    "device.channels_last",
    "device.compile",
    "device.deterministic",
    "scheduler.final_factor",
)
PLUGINS = sorted(Path(__file__).parents[1].glob("hydra_plugins/*/__init__.py"))
STORED = re.compile(r'group="hydra/(?P<group>\w+)", name="(?P<name>\w+)"')
SETTING = re.compile(
    r"^    (?P<key>[a-z]\w*): [^=\n]+ = (?P<value>[^#(\n]+?)(?:  # (?P<comment>.*))?$", re.MULTILINE
)
INTRODUCTION = """# Every key

Made from `conf/` and `vggexp/config/schema.py` by `python docs/keys.py > docs/keys.md`.
`group=file` chooses a file, `key=value` sets a value. `python -m vggexp [overrides] --cfg job`
prints the composed configuration. A range is checked before anything is written. If only some files
of a group have a key, the page names them in parentheses.
"""

Cells = tuple[str, ...]  # a row of a table


def unit(key: str, allowed: str, comment: str) -> str:
    """Returns the unit of a number, or an empty string, for example for a learning rate."""
    if "number" not in allowed:
        return ""
    name = key.rpartition(".")[2].replace("_", " ")
    match = UNIT.search(name) or UNIT.search(comment)
    return match[0] if match else ""


def allowed_values(field_type: Any) -> str:
    """Returns `1..4096 or null`, `none, batch, lrn` or `list of numbers > 0` of a field's type."""
    origin = get_origin(field_type)
    arguments = get_args(field_type)
    if origin in (Union, UnionType):
        options = []
        for argument in arguments:
            if argument is NoneType:
                options.append("null")
            else:
                options.append(allowed_values(argument))
        return " or ".join(options)
    if origin is Annotated:
        noun = "whole number" if arguments[0] is int else "number"
        return f"{noun} {format_range(arguments[1])}"
    if origin is Literal:
        return ", ".join(arguments)
    if origin is tuple:
        return f"list of {allowed_values(arguments[0])}".replace("number", "numbers")
    if origin is dict:
        return "keys and values"
    return {
        bool: "true, false",
        str: "text",
        Block: "[convolutions, channels] or [convolutions, channels, 1x1s]",
    }[field_type]


def format_range(limits: schema.Range) -> str:
    """Formats as `schema.Range` does, with separators of thousands."""
    bounds = []
    for bound in (limits.low, limits.high):
        bounds.append("2^63-1" if bound == 2**63 - 1 else f"{bound:,.0f}")
    return str(schema.Range(*bounds, limits.open_low, limits.open_high))  # type: ignore[arg-type]


class Field(NamedTuple):
    """A key of the schema. members: the names in its group that have it; empty if all have it."""

    key: str
    allowed: str
    members: Cells


def schema_fields() -> Iterator[Field]:
    """Yields every key of the schema, without the arguments of an optimizer or a data set.

    Yields a key twice if members of a group allow different values.
    """
    for name, field_type in get_type_hints(schema.Config, include_extras=True).items():
        classes = GROUP_CLASSES.get(name, (field_type,))
        if len(classes) > 1:
            yield from _group_fields(name, classes)
        elif dataclasses.is_dataclass(classes[0]):
            for key, hint in get_type_hints(classes[0], include_extras=True).items():
                if key != "arguments":
                    yield Field(f"{name}.{key}", allowed_values(hint), ())
        else:
            yield Field(name, allowed_values(field_type), ())


def _group_fields(group: str, classes: tuple[type, ...]) -> Iterator[Field]:
    """Yields the keys of a group whose members have classes of their own."""
    members_of: dict[tuple[str, str], list[str]] = {}  # (key, allowed) -> members
    member_count = 0
    for cls in classes:
        hints = get_type_hints(cls, include_extras=True)
        members = get_args(hints["name"])
        member_count += len(members)
        for key, hint in hints.items():
            if key == "arguments":
                continue
            allowed = "" if key == "name" else allowed_values(hint)
            members_of.setdefault((key, allowed), []).extend(members)
    for (key, allowed), members in members_of.items():
        if key == "name":
            allowed = ", ".join(members)
        has_all = len(members) == member_count
        yield Field(f"{group}.{key}", allowed, () if has_all else tuple(members))


def key_rows(entries: EntriesByKey) -> Iterator[Cells]:
    """Yields key, allowed, default, unit, meaning.

    The keys of the schema come first, then the arguments of an optimizer.
    """
    known = set()
    for field in schema_fields():
        known.add(field.key)
        yield _schema_row(field, entries)
    for key, key_entries in entries.items():
        if key.startswith("optimizer.") and key not in known:
            files = ", ".join(entry.file for entry in key_entries)
            name = f"`{key}` ({files})"
            yield _row(key, name, "as torch.optim has it", key_entries, meaning(key_entries))


def _schema_row(field: Field, entries: EntriesByKey) -> Cells:
    """Returns the row of a key of the schema."""
    found = entries.get(field.key, [])
    if field.members:
        found = member_entries(field.key, field.members, entries)
    name = f"`{field.key}`"
    if field.members and len(field.members) < 5:
        name += f" ({', '.join(field.members)})"
    return _row(field.key, name, field.allowed, found, meaning(found))


def _row(key: str, name: str, allowed: str, entries: list[Entry], comment: str) -> Cells:
    default = _default(key, name, entries)
    if key in KEYS_BY_FILE:
        own = [entry for entry in entries if "${" not in format_value(entry.value)]
        values = _files_by_text([(entry.file, format_value(entry.value)) for entry in own])
        default = ", ".join(f"`{value}` ({files})" for value, files in values.items())
        comments = _files_by_text([(entry.file, entry.comment) for entry in own])
        comment = "; ".join(f"{files}: {text}" for text, files in comments.items())
    return (
        name,
        allowed,
        default,
        unit(key, allowed, comment),
        comment,
    )


def _files_by_text(texts: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Returns the files that have each text, from pairs of file and text: {"true": "cuda, mps"}."""
    files: dict[str, list[str]] = {}
    for file, text in texts:
        files.setdefault(text, []).append(file)
    return {text: ", ".join(names) for text, names in files.items()}


def _default(key: str, name: str, entries: list[Entry]) -> str:
    """Returns the value of the first file that has a value of its own, not one of another file."""
    for entry in entries:
        text = format_value(entry.value)
        if "${" in text:
            continue
        default_files = ("config", DEFAULTS.get(key.partition(".")[0]))
        if entry.file in default_files or "(" in name:
            return f"`{text}`"
        return f"`{text}` ({entry.file})"
    return ""


def table(header: Cells, body: Sequence[Cells]) -> str:
    rule = tuple("---" for _ in header)
    lines = []
    for cells in [header, rule, *body]:
        escaped = [cell.replace("|", "\\|") for cell in cells]
        lines.append("| " + " | ".join(escaped) + " |")
    return "\n".join(lines)


def file_rows(group: str) -> Iterator[Cells]:
    """Yields file, what the file is (its comment up to source or command), and what it sets."""
    for path in group_files(group):
        head = re.match(r"(?:#.*\n)+", path.read_text("utf-8"))
        assert head is not None, path
        text = re.sub("# (?:@package|yaml-language-server).*\n", "", head[0])
        comment = " ".join(re.findall(r"# *(.*)", text))
        description = re.split(r"\b(?:Source|Command):", comment)[0].strip()
        values = []
        for key, entry in read_lines(path):
            text = format_value(entry.value)
            if key != "name" and "${" not in text:
                values.append(f"{key}: {text}")
        yield (
            f"`{group}={path.stem}`",
            description,
            f"`{', '.join(values)}`" if values else "",
        )


def plugin_settings() -> Iterator[tuple[str, list[Cells]]]:
    """Yields (`hydra/launcher=local`, rows of key, default, meaning) for each plugin of vggexp.

    The settings are read from the source of the plugin's dataclass.
    """
    for path in PLUGINS:
        source = path.read_text("utf-8")
        stored = STORED.search(source)
        if stored is None:
            continue
        group = stored["group"]
        body = source.partition("_target_")[2].partition("ConfigStore.instance")[0]
        rows: list[Cells] = []
        for key, value, comment in SETTING.findall(body):
            default = format_value(ast.literal_eval(value))
            rows.append((f"`hydra.{group}.{key}`", f"`{default}`", comment))
        yield f"hydra/{group}={stored['name']}", rows


def page() -> str:
    parts = [INTRODUCTION]
    rows = list(key_rows(read_entries()))
    rows_by_section: dict[str, list[Cells]] = {}
    for cells in rows:
        key = cells[0].split("`")[1]
        section = key.rpartition(".")[0]
        rows_by_section.setdefault(section, []).append(cells)
    for section in (*GROUPS, "train", "run", "sweep", ""):
        section_rows = rows_by_section[section]
        header = ("key", "allowed", "default", "unit", "meaning")
        parts.append(f"## {section or 'Top level'}\n")
        parts.append(table(header, section_rows) + "\n")
        if section in GROUPS:
            parts.append(f"`{section}={DEFAULTS[section]}` is the default.\n")
            header = ("file", "what it is", "what it sets")
            parts.append(table(header, list(file_rows(section))) + "\n")
    for title, setting_rows in plugin_settings():
        if setting_rows:
            parts.append(f"## {title}\n")
            parts.append(table(("key", "default", "meaning"), setting_rows) + "\n")
    for group in ("experiment", "sweep"):
        descriptions = [cells[:2] for cells in file_rows(group)]
        parts.append(f"## Files of {group}\n")
        parts.append(table(("file", "what it is"), descriptions) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
