"""Reads and writes the files of a run directory, except the metrics. Needs no torch."""

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from vggexp.config import yaml_limits
from vggexp.errors import CheckpointError, ConfigError, ResourceError
from vggexp.formatting import one_line
from vggexp.runs import schema
from vggexp.runs.jsonl import write_json
from vggexp.system.files import atomic_write, folder_problem
from vggexp.system.locks import lock_run_dir

CONFIG = "config.yaml"
RESULT = "result.json"
ENVIRONMENT = "env.json"
OVERRIDES = "overrides.txt"
RUN_MODE = "hydra.mode=RUN"  # in OVERRIDES: one run, although a file makes the command a sweep
METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"
PREDICTIONS = "predictions.npz"
NO_CONFIG = "not the folder of a run, it has no config.yaml"
CLOSED = "cannot be read: Permission denied"  # of a folder that is not searchable
EVENTS_PREFIX = "events.out.tfevents."  # of the names that TensorBoard looks for


def require_run(*folders: Path) -> None:
    """Checks that every folder is a run directory.

    Raises:
        ConfigError: a folder does not exist.
        CheckpointError: a folder has no config.yaml.
        ResourceError: a folder may not be read.
    """
    closed = []
    foreign = []
    by_problem: dict[str, list[str]] = {}
    for folder in folders:
        if not is_searchable(folder):
            closed.append(str(folder))
        elif problem := folder_problem(folder):
            by_problem.setdefault(problem, []).append(str(folder))
        elif not os.path.exists(folder / CONFIG):  # read_config reports what is not a file
            foreign.append(str(folder))
    if by_problem:
        lines = [f"{', '.join(names)}: {problem}" for problem, names in by_problem.items()]
        raise ConfigError(f"{'; '.join(lines)}; give the folder of a run, as outputs/NAME")
    if foreign:
        raise CheckpointError(f"{', '.join(foreign)}: {NO_CONFIG}")
    if closed:
        raise ResourceError(f"{', '.join(closed)}: {CLOSED}")


def is_searchable(folder: Path) -> bool:
    """Returns whether no permission is missing to look into a folder, which need not exist."""
    try:
        os.stat(folder / CONFIG)
    except PermissionError:
        return False
    except OSError:
        return True
    return True


def read_result(folder: Path) -> dict[str, Any]:
    """Returns result.json of a run; {} if there is none.

    Raises:
        CheckpointError: the file is not what a run writes.
        ResourceError: a permission or a resource is missing.
    """
    return _read_json(folder / RESULT, schema.check_result)


def read_environment(folder: Path) -> dict[str, Any]:
    """Returns env.json of a run; {} if there is none. Raises what `read_result` raises."""
    return _read_json(folder / ENVIRONMENT, schema.check_environment)


def _read_json(path: Path, check: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    try:
        content = schema.parse_object(schema.read_bytes(path))
        check(content)
        return content
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise schema.damaged(path, str(error)) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Returns config.yaml of a run as plain data; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing or no run writes such a file.
        ResourceError: a permission or a resource is missing.
    """
    path = folder / CONFIG
    try:
        content = yaml_limits.load(schema.read_bytes(path).decode())
        schema.check_plain(content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: {NO_CONFIG}") from error
    except (ValueError, yaml.YAMLError) as error:
        raise schema.damaged(path, f"not a configuration: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise schema.damaged(path, "not a configuration")
    return content


def names_with_hash(root: Path, run_hash: str) -> dict[str, int]:
    """Returns the names in `root` that end in a run's hash, sorted, each with its number.

    The number is 1, or that of a copy: 2 for `vgg11-fashion_mnist-96px-lr0.01-33b7f214-2`. Nothing
    is known yet of what the names stand for. Empty if the folder cannot be listed.
    """
    try:
        names = _list_names(root, os.stat(root).st_mtime_ns)
    except OSError:
        return {}
    numbers = {}
    for name in names:
        beginning, found, end = name.rpartition(f"-{run_hash}")
        if beginning and found and re.fullmatch(r"(-[1-9]\d{0,8})?", end, re.ASCII):
            numbers[name] = int(end[1:] or 1)
    return numbers


@lru_cache(maxsize=4)
def _list_names(root: Path, modified_ns: int) -> list[str]:
    """Lists a folder once for each of its states: a sweep looks up each of its jobs."""
    return sorted(os.listdir(root))


def unused_name(root: Path, name: str, taken: Collection[int] = ()) -> str:
    """Returns the first of `name`, name-2, name-3, ... that does not exist in `root`.

    Args:
        taken: numbers, from 1 for `name` itself, that are in use under another name.
    """
    number = 1
    candidate = name
    while number in taken or os.path.lexists(root / candidate):
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def write_metadata(
    folder: Path,
    config: Mapping[str, Any],
    overrides: Sequence[str],
    environment: Mapping[str, Any],
) -> None:
    """Writes config.yaml, overrides.txt and env.json."""
    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    atomic_write(folder / CONFIG, text.encode())
    lines = [f"{override}\n" for override in overrides]
    atomic_write(folder / OVERRIDES, "".join(lines).encode())
    write_json(folder / ENVIRONMENT, environment)


def read_overrides(folder: Path) -> list[str] | None:
    """Returns the words of OVERRIDES; None if they cannot be read. See `expand.first_words`."""
    try:
        text = schema.read_bytes(folder / OVERRIDES).decode("utf-8", "replace")
    except (CheckpointError, ResourceError, FileNotFoundError):
        return None
    return [word for word in text.split("\n") if word]


def write_result(folder: Path, state: str, **fields: Any) -> dict[str, Any]:
    """Writes result.json and returns its content.

    Args:
        state: running, paused, interrupted, failed or finished.
        fields: what is known about the run by now.
    """
    result = {"state": state, "error": None, **fields}
    write_json(folder / RESULT, result)
    return result


def mark_interrupted(
    folder: Path,
    error: str,
    exit_code: int,
    *,
    states: Collection[str] = ("running",),
) -> None:
    """Writes the state `interrupted` for a process that ended before it could.

    Without this record, result.json says `running` until `run_state` looks at the lock.

    Args:
        states: the record is written only if result.json has one of these states.

    Raises:
        InUseError: another process works in the folder, and records its own end.
    """

    def has_state() -> bool:
        return read_result(folder).get("state") in states

    if not has_state():  # the lock would make the folder
        return
    with lock_run_dir(folder):
        if has_state():  # another process may have ended in the meantime
            write_result(folder, "interrupted", error=error, exit_code=exit_code)


def count_attempts(folder: Path) -> int:
    """Returns how many times the run has been started, including this time."""
    try:
        return read_environment(folder).get("attempts", 0) + 1
    except CheckpointError:  # the file is about to be replaced
        return 1
