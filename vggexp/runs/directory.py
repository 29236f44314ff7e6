"""Reads and writes the files of a run directory, except the metrics. Needs no torch."""

import errno
import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vggexp.errors import CheckpointError, ConfigError, ResourceError
from vggexp.runs.jsonl import write_json
from vggexp.system.files import atomic_write
from vggexp.system.locks import lock_run_dir

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
MAX_CONFIG_BYTES = 1 << 20  # no configuration of a run is larger
CONFIG = "config.yaml"
RESULT = "result.json"
ENVIRONMENT = "env.json"
METRICS = "metrics.jsonl"


def require_run(*folders: Path) -> None:
    """Checks that every folder is a run directory.

    Raises:
        ConfigError: a folder does not exist.
        CheckpointError: a folder has no config.yaml.
    """
    missing = [str(folder) for folder in folders if not os.path.isdir(folder)]
    if missing:
        hint = "give the folder of a run, as outputs/NAME"
        raise ConfigError(f"{', '.join(missing)}: no such directory; {hint}")
    foreign = [str(folder) for folder in folders if not os.path.isfile(folder / CONFIG)]
    if foreign:
        reason = "not the folder of a run, it has no config.yaml"
        raise CheckpointError(f"{', '.join(foreign)}: {reason}")


def read_result(folder: Path) -> dict[str, Any]:
    """Returns result.json of a run; {} if there is none.

    Raises:
        CheckpointError: The file is unreadable.
        ResourceError: The process or the system has no file descriptor left.
    """
    path = folder / RESULT
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        kind = ResourceError if error.errno in (errno.EMFILE, errno.ENFILE) else CheckpointError
        raise kind(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not the result of a run")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """Returns config.yaml of a run as plain data; nothing in the file is executed.

    Raises:
        CheckpointError: the file is missing or no run writes such a file.
    """
    path = folder / CONFIG
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: larger than a configuration can be")
        text = path.read_text("utf-8")
        if _has_aliases(text):
            reason = "holds aliases, which a run never writes: they can stand for endless values"
            raise CheckpointError(f"{path}: {reason}")
        content = yaml.load(text, Loader=SAFE_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: not the folder of a run: {reason}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a configuration")
    return content


def _has_aliases(text: str) -> bool:
    if "*" not in text:
        return False
    events = yaml.parse(text, Loader=SAFE_LOADER)
    return any(isinstance(event, yaml.AliasEvent) for event in events)


def unused_name(root: Path, name: str) -> str:
    """Returns the first of `name`, name-2, name-3, ... that does not exist in `root`."""
    number = 1
    candidate = name
    while (root / candidate).exists():
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
    atomic_write(folder / "overrides.txt", "".join(lines).encode())
    write_json(folder / ENVIRONMENT, environment)


def write_result(folder: Path, state: str, **fields: Any) -> dict[str, Any]:
    """Writes result.json and returns its content.

    Args:
        state: running, interrupted, failed or finished.
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
    """
    if read_result(folder).get("state") in states:
        with lock_run_dir(folder):
            write_result(folder, "interrupted", error=error, exit_code=exit_code)


def count_attempts(folder: Path) -> int:
    """Returns how many times the run has been started, including this time."""
    try:
        return int(json.loads((folder / ENVIRONMENT).read_bytes())["attempts"]) + 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 1
