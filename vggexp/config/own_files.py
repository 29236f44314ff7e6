"""A user's own YAML files: what they may leave out, which one sets a key, what they replace.

They stand in folders laid out as conf/, which --config-dir and VGGEXP_CONF_PATH name.
"""

import io
import os
from collections.abc import MutableSequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import SearchPathElement
from omegaconf import DictConfig, OmegaConf

from vggexp.config.command_files import current_files
from vggexp.config.device import conf_dir
from vggexp.config.keys import flatten
from vggexp.config.parse import GROUP_CLASSES, schema_keys
from vggexp.errors import ConfigError
from vggexp.formatting import format_value

SHIPPED = "main"  # Hydra's name for the origin of conf/
COMMAND_LINE = "command-line"  # Hydra's name for the origin of the folder of --config-dir
GROUPS = (*GROUP_CLASSES, "augment", "optimizer", "device")  # whose files hold one section each
GLOBAL_PACKAGE = "# @package _global_"  # first line of a file that sets keys of several sections


@dataclass(frozen=True)
class OwnFile:
    """A file that a command has read."""

    path: Path
    group: str  # such as arch; empty for a file outside of the groups
    values: dict[str, Any]  # by full name, such as arch.blocks, as the file has them
    has_defaults: bool  # whether the file names other files
    replaces_shipped: bool

    def sets(self, key: str, shown: str | None) -> bool:
        """Returns whether the file sets a key or a part of it, to the value that an error shows."""
        inner = [name for name in self.values if name == key or name.startswith(f"{key}.")]
        return bool(inner) and (shown is None or format_value(self.values.get(key)) == shown)


READ: dict[Path, OwnFile] = {}  # the own files of this command, in the order of reading


def search_first(search_path: MutableSequence[SearchPathElement]) -> None:
    """Lets the files of --config-dir win over shipped ones; for Hydra alone shipped files win."""
    ranks = {"hydra": 0, COMMAND_LINE: 1}
    search_path[:] = sorted(search_path, key=lambda place: ranks.get(str(place.provider), 2))


def complete(folder: str, name: str, content: Any, package: str | None) -> None:
    """Adds to the content of an own file what it leaves out, and remembers the file.

    Args:
        folder: the user's folder.
        name: the file below it, such as arch/mine.
        content: the content of the file, which is changed.
        package: what the file's first line says of its place; None: its group.

    Raises:
        ConfigError: the content is a list, would stand in a section that does not exist, or
            chooses a file for a group in other words than Hydra's.
    """
    group, _, stem = name.rpartition("/")
    path = Path(folder, f"{name.removesuffix('.yaml')}.yaml")
    shown = _as_typed(path)
    if not isinstance(content, DictConfig):
        raise ConfigError(f"{shown}: holds a list; needs lines as key: value")
    if group == "experiment" and package is None:
        raise ConfigError(f"{shown}: sets keys of several groups; begin it with {GLOBAL_PACKAGE}")
    own: Any = OmegaConf.to_container(content, resolve=False)
    if group in ("experiment", "sweep"):
        _check_choices(shown, own.get("defaults"))
    is_section = group in GROUPS and package in (None, group)
    READ[path] = OwnFile(
        path=shown,
        group=group if is_section else "",
        values=flatten({group: own}) if is_section else flatten(own),
        has_defaults="defaults" in own,
        replaces_shipped=Path(conf_dir(), f"{name}.yaml").is_file(),
    )
    if is_section and "defaults" not in own:  # the files that it names hold the rest
        for key, value in _defaults(group, stem, own).items():
            content[key] = value


def _check_choices(shown: Path, entries: Any) -> None:
    """Raises ConfigError for a choice that Hydra would add to that of config.yaml."""
    for entry in entries if isinstance(entries, list) else []:
        for words, file in entry.items() if isinstance(entry, dict) else ():
            group = str(words).rpartition(" ")[2].lstrip("/")
            if group in GROUPS and words != f"override /{group}":
                raise ConfigError(f"{shown}: {words}: {file}: write override /{group}: {file}")


def _as_typed(path: Path) -> Path:
    """Returns a path relative to the working directory if the file is below it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _defaults(group: str, stem: str, own: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys that a file of a group leaves out, with the values of a shipped file.

    The shipped file is the one of the same file name, else the group's default, else the one that
    is called as `name` says; it must have the same `name`. The arguments of an optimizer whose
    `name` is given are its own: torch's defaults fill them.
    """
    for candidate in (stem, _default_files()[group], str(own.get("name")).lower()):
        shipped = _shipped(group, candidate)
        if not shipped or own.get("name", shipped.get("name")) != shipped.get("name"):
            continue
        missing = {key: value for key, value in shipped.items() if key not in own}
        if "name" not in own:
            return missing
        return {key: value for key, value in missing.items() if f"{group}.{key}" in schema_keys()}
    return {}


def _default_files() -> dict[str, str]:
    """Returns the file of each group that config.yaml chooses."""
    chosen = {}
    for entry in _load_shipped("config")["defaults"]:
        if isinstance(entry, dict):
            chosen.update(entry)
    return chosen


def _shipped(group: str, stem: str) -> dict[str, Any]:
    """Returns the content of a shipped file; {} if there is none."""
    return {} if os.sep in stem else _load_shipped(f"{group}/{stem}")


def _load_shipped(name: str) -> dict[str, Any]:
    """Returns the content of a file of conf/ as this command has read it; {} if there is none."""
    files = current_files()
    path = os.path.join(conf_dir(), f"{name}.yaml")
    return _parse(files.read(path)) if files.is_file(path) else {}


@cache
def _parse(text: str) -> dict[str, Any]:
    content: Any = OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)
    return content


def name_file(problem: str) -> str:
    """Puts the file before a problem of a key that one of the user's own files has set."""
    setting, _, text = problem.partition(": ")
    name, equals, shown = setting.partition("=")
    key, bracket, _ = name.partition("[")  # arch.blocks[0] is a part of arch.blocks
    is_whole = equals and not bracket
    for file in reversed(READ.values()):
        if file.sets(key, shown if is_whole else None):
            return f"{file.path}: {problem}"
        if file.group == key.partition(".")[0] and text.startswith("missing;"):
            return f"{file.path}: {key}: missing; give it a value"
    return problem


def file_with_default(entry: dict[str, str]) -> Path | None:
    """Returns the last own file of this command with an entry in its list `defaults`."""
    for file in reversed(READ.values()):
        entries = file.values.get("defaults")
        if isinstance(entries, list) and entry in entries:
            return file.path
    return None


def replaced() -> list[Path]:
    """Returns the own files of this command that stand in place of shipped ones."""
    return [file.path for file in READ.values() if file.replaces_shipped]


def with_defaults() -> list[Path]:
    """Returns the own files of this command that name other files."""
    return [file.path for file in READ.values() if file.has_defaults]
