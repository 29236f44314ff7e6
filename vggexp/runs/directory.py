"""The run directory: whose it is, what it holds, and in which state its run is. Needs no torch."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vggexp.errors import CheckpointError, ConfigError
from vggexp.runs.jsonl import write_json
from vggexp.system.files import atomic_write
from vggexp.system.locks import lock_run_dir


def require_run(*folders: Path) -> None:
    """Raises ConfigError where a folder does not exist, CheckpointError where it is not a run's."""
    if missing := [folder for folder in folders if not os.path.isdir(folder)]:
        raise ConfigError(
            f"{', '.join(map(str, missing))}: no such directory; give the folder of a run, as outputs/NAME"
        )
    if foreign := [folder for folder in folders if not os.path.isfile(folder / "config.yaml")]:
        raise CheckpointError(
            f"{', '.join(map(str, foreign))}: not the folder of a run, it has no config.yaml"
        )


SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
MAX_CONFIG_BYTES = 1 << 20  # more is no configuration of ours
RESULT = "result.json"
ENVIRONMENT = "env.json"
METRICS = "metrics.jsonl"


def read_result(folder: Path) -> dict[str, Any]:
    """result.json of a run, empty where there is none. Raises CheckpointError where it is unreadable."""
    path = folder / RESULT
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not the result of a run")
    return content


def read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run as plain data; nothing in it is executed. Raises CheckpointError."""
    path = folder / "config.yaml"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise CheckpointError(f"{path}: larger than a configuration can be")
        text = path.read_text("utf-8")
        if "*" in text and any(
            isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=SAFE_LOADER)
        ):
            raise CheckpointError(
                f"{path}: holds aliases, which a run never writes: they can stand for endless values"
            )
        content = yaml.load(text, Loader=SAFE_LOADER)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(
            f"{path}: not the folder of a run: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a configuration")
    return content


def unused_name(root: Path, name: str) -> str:
    """`name`, or name-2, name-3, ...: the first folder that does not exist."""
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
    """Writes what the run is: config.yaml, overrides.txt and env.json."""
    atomic_write(
        folder / "config.yaml",
        yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode(),
    )
    atomic_write(folder / "overrides.txt", "".join(f"{line}\n" for line in overrides).encode())
    write_json(folder / ENVIRONMENT, environment)


def write_result(folder: Path, state: str, **facts: Any) -> dict[str, Any]:
    """Writes result.json: running, interrupted, failed or finished, with what is known by now."""
    result = {"state": state, "error": None, **facts}
    write_json(folder / RESULT, result)
    return result


def mark_interrupted(folder: Path, error: str, exit_code: int, *states: str) -> None:
    """Records what the process could not: without it the run would read as running until the next look.

    states: in which the record still is; only running where none is given.
    """
    if read_result(folder).get("state") in (states or ("running",)):
        with lock_run_dir(folder):
            write_result(folder, "interrupted", error=error, exit_code=exit_code)


def count_attempts(folder: Path) -> int:
    """How many times this run has been started, this time included."""
    try:
        return int(json.loads((folder / ENVIRONMENT).read_bytes())["attempts"]) + 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 1
