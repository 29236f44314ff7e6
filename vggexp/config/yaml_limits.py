"""Reads YAML files of users within limits: a small file may neither hang nor fill the memory."""

from pathlib import Path
from typing import Any

import yaml

from vggexp.errors import ConfigError

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
MAX_BYTES = 1 << 20  # no configuration is larger
MAX_VALUES = 100_000  # with every alias written out
MAX_DEPTH = 100  # sections and lists inside each other; YAML's readers recurse


def check_file(path: Path) -> None:
    """Checks a file before anything is built from it. Leaves errors of syntax to the reader.

    Raises:
        ConfigError: the file is too large, too deep, or its aliases stand for too many values.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES >> 20} MiB, not a configuration")
        events = yaml.parse(path.read_text("utf-8"), Loader=SAFE_LOADER)
        _check_events(path, events)
    except (OSError, ValueError, yaml.YAMLError):
        return  # the reader reports the same error, with its line


def _check_events(path: Path, events: Any) -> None:
    """Counts the values that the file stands for, without building them."""
    sizes: dict[str, int] = {}  # values below each finished anchor
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count at the start
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            contains_itself = event.anchor in [anchor for anchor, _ in open_nodes]
            count += MAX_VALUES + 1 if contains_itself else sizes.get(event.anchor or "", 0)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor:
                sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = open_nodes.pop()
            if anchor:
                sizes[anchor] = count - start
        if count > MAX_VALUES:
            raise ConfigError(f"{path}: stands for more than {MAX_VALUES} values")
        if len(open_nodes) > MAX_DEPTH:
            raise ConfigError(f"{path}: more than {MAX_DEPTH} sections inside each other")
