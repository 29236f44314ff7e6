"""Reads YAML of others within limits: a small file may neither hang, crash nor fill the memory."""

import contextlib
import errno
from pathlib import Path
from typing import Any

import yaml

from vggexp.errors import ConfigError
from vggexp.system.files import read_file

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
BYTE_ORDER_MARK = "\ufeff"  # editors on Windows write it
MAX_BYTES = 1 << 20  # no configuration is larger
MAX_VALUES = 100_000  # with every alias written out
MAX_PLAIN_CHARS = 2000  # of a value without quotes: Python refuses to print much longer numbers
MAX_DEPTH = 100  # sections and lists inside each other; YAML's readers recurse


class LimitError(ValueError):
    """A text is not for a configuration, although it may be YAML."""


def load(text: str) -> Any:
    """Returns the content of a YAML text as plain data; nothing in it is executed.

    Raises:
        LimitError: the text is too deep, or its aliases stand for too many values.
        ValueError, yaml.YAMLError: the text is no YAML of plain data.
    """
    _check_events(text)
    try:
        return yaml.load(text, Loader=SAFE_LOADER)
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # as of !!bool x
        raise ValueError(f"a value does not fit its tag ({error})") from error


def read_checked(path: Path) -> str:
    """Returns the text of a file that is within the limits; the reader reports errors of syntax.

    Raises:
        ConfigError: the file is no regular file, too large, too deep, its aliases stand for too
            many values, it is not UTF-8, or it begins with a mark that hides its first line from
            Hydra.
        OSError: the file is missing, or a permission is.
    """
    try:
        text = read_file(path, MAX_BYTES).decode()
        if text.startswith(BYTE_ORDER_MARK):
            raise LimitError("begins with a byte order mark; save it as UTF-8 without one")
        with contextlib.suppress(yaml.YAMLError):
            _check_events(text)
        return text
    except LimitError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValueError as error:  # UnicodeDecodeError, too
        raise ConfigError(f"{path}: cannot be read as YAML ({error})") from error
    except OSError as error:
        if error.errno in (errno.EFBIG, errno.EINVAL):
            raise ConfigError(f"{path}: {error.strerror}, not a configuration") from error
        raise


def _check_events(text: str) -> None:
    """Counts the values that the text stands for, without building them. Raises LimitError."""
    sizes: dict[str, int] = {}  # values below each finished anchor
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and the count at the start
    count = 0
    for event in yaml.parse(text, Loader=SAFE_LOADER):
        if isinstance(event, yaml.AliasEvent):
            contains_itself = event.anchor in [anchor for anchor, _ in open_nodes]
            count += MAX_VALUES + 1 if contains_itself else sizes.get(event.anchor or "", 0)
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            may_be_number = event.tag or not event.style  # it has no quotes
            if may_be_number and len(event.value) > MAX_PLAIN_CHARS:
                raise LimitError(f"a value of more than {MAX_PLAIN_CHARS} characters; quote a text")
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
            raise LimitError(f"stands for more than {MAX_VALUES} values")
        if len(open_nodes) > MAX_DEPTH:
            raise LimitError(f"more than {MAX_DEPTH} sections inside each other")
