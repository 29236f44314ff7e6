"""The page of every key: types and ranges of the schema, values and comments of conf/. `python docs/keys.py` prints it.

A key's meaning is the comment behind its value, in the file that is chosen by default or the first that has one; its
unit is the first word of measure in its name, else in that comment.
"""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

import yaml

from vggexp.config import schema
from vggexp.config.device import conf_dir
from vggexp.config.parse import GROUP_CLASSES
from vggexp.formatting import format_value
from vggexp.models.shapes import Block

CONF = Path(conf_dir())
PAGE = Path(__file__).parent / "keys.md"
GROUPS = ("arch", "data", "augment", "optimizer", "scheduler", "device")
DEFAULTS = dict(
    re.findall(r"^  - (\w+): (\w+)", (CONF / "config.yaml").read_text("utf-8"), re.MULTILINE)
)
UNITS = r"pixels|minutes|epochs|steps|images|micro-batches|processes|threads|blocks|jobs|runs|classes|channels|neurons"
UNIT = re.compile(rf"\b(?:{UNITS}|probability|share|factor|accuracy)\b")
PLUGINS = sorted(Path(__file__).parents[1].glob("hydra_plugins/*/__init__.py"))
STORED = re.compile(r'group="hydra/(?P<group>\w+)", name="(?P<name>\w+)"')
SETTING = re.compile(
    r"^    (?P<key>[a-z]\w*): [^=\n]+ = (?P<value>[^#(\n]+?)(?:  # (?P<comment>.*))?$", re.MULTILINE
)
LINE = re.compile(r"(?P<deep> *)(?P<key>\w+):(?: (?P<value>.*?))?(?:\s+# (?P<comment>.*))?$")
INTRODUCTION = """# Every key

Made from `conf/` and `vggexp/config/schema.py` when the site is built. `group=file` chooses a file, `key=value` sets a
value; `python -m vggexp [overrides] --cfg job` prints what a command comes to. A range is checked before anything is
written. Where a key belongs to some members of a group only, they stand in brackets.
"""


class Entry(NamedTuple):
    """A key as a file gives it; `comment` with the lines that continue it."""

    file: str
    value: Any
    comment: str


def lines(path: Path) -> Iterator[tuple[str, Entry]]:
    """(full key, entry) of a file of conf/, its nested keys joined by dots; without the lists and Hydra's own."""
    sections: list[str] = []
    found: list[tuple[str, Entry]] = []
    for line in path.read_text("utf-8").partition("\nhydra:")[0].splitlines():
        if found and re.match(r" +# ", line):
            found[-1] = (
                found[-1][0],
                found[-1][1]._replace(comment=f"{found[-1][1].comment} {line.strip(' #')}"),
            )
        elif match := LINE.match(line):
            sections[len(match["deep"]) // 2 :] = [match["key"]]
            if match["value"]:
                entry = Entry(path.stem, yaml.safe_load(match["value"]), match["comment"] or "")
                found.append((".".join(sections), entry))
    return iter(found)


def entries() -> dict[str, list[Entry]]:
    """Every key with the files that set it, the one that is chosen by default first."""
    found: dict[str, list[Entry]] = {}
    for key, entry in lines(CONF / "config.yaml"):
        found.setdefault(key, []).append(entry)
    for group in GROUPS:
        paths = sorted(
            (CONF / group).glob("*.yaml"),
            key=lambda path: (path.stem != DEFAULTS[group], path.stem),
        )
        for key, entry in (pair for path in paths for pair in lines(path)):
            found.setdefault(f"{group}.{key}", []).append(entry)
    return found


def meaning(found: list[Entry]) -> str:
    return next((entry.comment for entry in found if entry.comment), "")


def unit(key: str, text: str, comment: str) -> str:
    """Of a number; nothing for one that has none, such as a learning rate."""
    if "number" not in text:
        return ""
    match = UNIT.search(key.rpartition(".")[2].replace("_", " ")) or UNIT.search(comment)
    return match[0] if match else ""


def allowed(kind: Any) -> str:
    """`1..4096 or null`, `none, batch, lrn`, `list of numbers > 0`, of a field's type."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join("null" if arg is NoneType else allowed(arg) for arg in args)
    if origin is Annotated:
        return f"{'whole number' if args[0] is int else 'number'} {bounds(args[1])}"
    if origin is Literal:
        return ", ".join(args)
    if origin is tuple:
        return f"list of {allowed(args[0])}".replace("number", "numbers")
    if origin is dict:
        return "keys and values"
    return {
        bool: "true, false",
        str: "text",
        Block: "[convolutions, channels] or [convolutions, channels, 1x1s]",
    }[kind]


def bounds(limits: schema.Range) -> str:
    """As `schema.Range` tells them, with thousands apart."""
    largest = {2**63 - 1: "2^63-1"}
    sides = [largest.get(number, f"{number:,.0f}") for number in (limits.low, limits.high)]  # type: ignore[call-overload]
    return str(schema.Range(*sides, limits.open_low, limits.open_high))  # type: ignore[arg-type]


class Field(NamedTuple):
    key: str
    allowed: str
    members: tuple[str, ...]  # of its group, where not all have it


def fields() -> Iterator[Field]:
    """Every key of the schema; twice where members of a group allow different values. Without an optimizer's own."""
    for name, kind in get_type_hints(schema.Config, include_extras=True).items():
        classes = GROUP_CLASSES.get(name, (kind,))
        if not dataclasses.is_dataclass(classes[0]):
            yield Field(name, allowed(kind), ())
            continue
        having: dict[tuple[str, str], list[str]] = {}
        for cls in classes:
            hints = get_type_hints(cls, include_extras=True)
            for key in (field for field in hints if (name, field) != ("optimizer", "arguments")):
                text = "" if key == "name" and len(classes) > 1 else allowed(hints[key])
                having.setdefault((key, text), []).extend(
                    get_args(hints["name"]) if len(classes) > 1 else ()
                )
        everywhere = (
            sum(len(get_args(get_type_hints(cls)["name"])) for cls in classes)
            if len(classes) > 1
            else 0
        )
        for (key, text), members in having.items():
            text = text or ", ".join(members)
            yield Field(f"{name}.{key}", text, () if len(members) == everywhere else tuple(members))


def rows(found: dict[str, list[Entry]]) -> Iterator[tuple[str, ...]]:
    """key, allowed, default, unit, meaning; first of the schema, then an optimizer's own arguments."""
    for key, text, members in fields():
        of = [
            entry
            for entry in found.get(key, ())
            if not members or entry.file in (*members, "config")
        ]
        own = [entry for entry in of if entry.file in members] or of or found.get(key, [])
        yield row(
            f"`{key}`" + f" ({', '.join(members)})" * bool(members and len(members) < 5),
            text,
            own,
            of,
        )
    known = {field.key for field in fields()}
    for key in (key for key in found if key.startswith("optimizer.") and key not in known):
        givers = ", ".join(entry.file for entry in found[key])
        yield row(f"`{key}` ({givers})", "as torch.optim has it", found[key], found[key])


def row(name: str, text: str, own: list[Entry], of: list[Entry]) -> tuple[str, ...]:
    """own: as its member's files give it. A value that another file lends is left to that file."""
    told, key = meaning(own) or meaning(of), name.split("`")[1]
    given = next((entry for entry in own if "${" not in format_value(entry.value)), None)
    elsewhere = (
        given
        and given.file not in ("config", DEFAULTS.get(key.partition(".")[0]))
        and "(" not in name
    )
    default = (
        f"`{format_value(given.value)}`" + f" ({given.file})" * bool(elsewhere) if given else ""
    )
    return name, text, default, unit(key, text, told), told


def table(head: tuple[str, ...], body: list[tuple[str, ...]]) -> str:
    cells = [head, tuple("---" for _ in head), *body]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in cells
    )


def files(group: str) -> Iterator[tuple[str, ...]]:
    """file, what it is (its comment up to source or command), what it sets."""
    for path in sorted((CONF / group).glob("*.yaml")):
        head = re.match(r"(?:#.*\n)+", path.read_text("utf-8"))[0].replace(
            "# @package _global_\n", ""
        )  # type: ignore[index]
        told = re.split(r"\b(?:Source|Command):", " ".join(re.findall(r"# *(.*)", head)))[0].strip()
        given = {key: format_value(entry.value) for key, entry in lines(path) if key != "name"}
        sets = ", ".join(f"{key}: {value}" for key, value in given.items() if "${" not in value)
        yield f"`{group}={path.stem}`", told, f"`{sets}`" if sets else ""


def settings() -> Iterator[tuple[str, list[tuple[str, ...]]]]:
    """(`hydra/launcher=local`, rows of key, default, meaning) of each plugin of ours, from its dataclass's source."""
    for path in PLUGINS:
        source = path.read_text("utf-8")
        if place := STORED.search(source):
            body = source.partition("_target_")[2].partition("ConfigStore.instance")[0]
            yield (
                f"hydra/{place['group']}={place['name']}",
                [
                    (
                        f"`hydra.{place['group']}.{key}`",
                        f"`{format_value(ast.literal_eval(value))}`",
                        comment,
                    )
                    for key, value, comment in SETTING.findall(body)
                ],
            )


def page() -> str:
    found = entries()
    parts, made = [INTRODUCTION], list(rows(found))
    head, chosen = (
        ("key", "allowed", "default", "unit", "meaning"),
        ("file", "what it is", "what it sets"),
    )
    for section in (*GROUPS, "train", "run", "sweep", ""):
        title = section or "Top level"
        inside = [cells for cells in made if cells[0].split("`")[1].rpartition(".")[0] == section]
        parts += [f"## {title}\n", table(head, inside) + "\n"]
        if section in GROUPS:
            parts += [
                f"`{section}={DEFAULTS[section]}` is the default.\n",
                table(chosen, list(files(section))) + "\n",
            ]
    for title, body in settings():
        parts += (
            [f"## {title}\n", table(("key", "default", "meaning"), body) + "\n"] if body else []
        )
    for group in ("experiment", "sweep"):
        parts += [
            f"## Files of {group}\n",
            table(chosen[:2], [cells[:2] for cells in files(group)]) + "\n",
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page())
