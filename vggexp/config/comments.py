"""Reads the comments of conf/: the meaning of every key, beside its value."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vggexp.config.device import conf_dir

MISSING = "???"  # in a file: the command has to give the value
GROUPS = ("arch", "data", "augment", "optimizer", "scheduler", "device")
LINE = re.compile(r"(?P<indent> *)(?P<key>\w+):(?: (?P<value>.*?))?(?:\s+# (?P<comment>.*))?$")
DEFAULT_FILE = re.compile(r"^  - (\w+): (\w+)", re.MULTILINE)


class Entry(NamedTuple):
    """A key in a file. `comment` includes the lines that continue it."""

    file: str
    value: Any
    comment: str


KeyEntry = tuple[str, Entry]
EntriesByKey = dict[str, list[Entry]]  # the default file first


def default_files() -> dict[str, str]:
    """Returns the file that config.yaml chooses for each group."""
    return dict(DEFAULT_FILE.findall(Path(conf_dir(), "config.yaml").read_text("utf-8")))


def group_files(group: str) -> list[Path]:
    return sorted(Path(conf_dir(), group).glob("*.yaml"))


def read_lines(path: Path) -> list[KeyEntry]:
    """Returns (full key, entry) for each key of a file of conf/.

    Nested keys are joined by dots. Lists and Hydra's own keys are left out.
    """
    sections: list[str] = []
    entries: list[KeyEntry] = []
    text = path.read_text("utf-8").partition("\nhydra:")[0]
    for line in text.splitlines():
        if entries and re.match(r" +# ", line):
            key, entry = entries[-1]
            comment = f"{entry.comment} {line.strip(' #')}"
            entries[-1] = (key, entry._replace(comment=comment))
            continue
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["indent"]) // 2
        sections[depth:] = [match["key"]]
        if match["value"]:
            key = ".".join(sections)
            value = yaml.safe_load(match["value"])
            comment = match["comment"] or ""
            entries.append((key, Entry(path.stem, value, comment)))
    return entries


def read_entries() -> EntriesByKey:
    """Returns every key with the files that set it, the default file first."""
    defaults = default_files()
    entries: EntriesByKey = {}
    for key, entry in read_lines(Path(conf_dir(), "config.yaml")):
        entries.setdefault(key, []).append(entry)
    for group in GROUPS:
        paths = group_files(group)
        paths.sort(key=lambda path: path.stem != defaults[group])
        for path in paths:
            for key, entry in read_lines(path):
                entries.setdefault(f"{group}.{key}", []).append(entry)
    return entries


def member_entries(key: str, members: Sequence[str], entries: EntriesByKey) -> list[Entry]:
    """Returns the entries of a key in the files whose `name` is one of `members`.

    A file that leaves its name open belongs to all names that no other file has. All entries are
    returned if no such file sets the key: config.yaml has no name.
    """
    group = key.partition(".")[0]
    names = {entry.file: entry.value for entry in entries.get(f"{group}.name", [])}
    found = entries.get(key, [])
    if not {*members} & {*names.values()}:
        members = [MISSING]
    return [entry for entry in found if names.get(entry.file) in members] or found


def meaning(entries: Sequence[Entry]) -> str:
    """Returns the first comment."""
    for entry in entries:
        if entry.comment:
            return entry.comment
    return ""
