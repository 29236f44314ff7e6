"""The run directory: whose it is, what it holds, and in which state its run is. Needs no torch."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from vggexp.errors import CheckpointError, InUseError, ResourceError
from vggexp.files import replace
from vggexp.sinks.jsonl import write_json

SAFE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is ten times faster
CONFIG_BYTES = 1 << 20  # more is no configuration of ours
TRIES = 5  # of taking a lock, in a tenth of a second
NEWEST = 2  # checkpoints that are kept besides the best
RESULT, ENVIRONMENT, METRICS = "result.json", "env.json", "metrics.jsonl"


def result_of(folder: Path) -> dict[str, Any]:
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


def config_of(folder: Path) -> dict[str, Any]:
    """config.yaml of a run as plain data; nothing in it is executed. Raises CheckpointError."""
    path = folder / "config.yaml"
    try:
        if path.stat().st_size > CONFIG_BYTES:
            raise CheckpointError(f"{path}: larger than a configuration can be")
        text = path.read_text("utf-8")
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=SAFE)):
            raise CheckpointError(f"{path}: holds aliases, which a run never writes: they can stand for endless values")
        content = yaml.load(text, Loader=SAFE)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise CheckpointError(f"{path}: not the folder of a run: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a configuration")
    return content


def next_free(root: Path, name: str) -> str:
    """`name`, or name-2, name-3, ...: the first folder that does not exist."""
    number, candidate = 1, name
    while (root / candidate).exists():
        number += 1
        candidate = f"{name}-{number}"
    return candidate


HELD: set[IO[str]] = set()  # locks of this process


def _let_go() -> None:
    """In a forked process, such as a data worker, which would keep the lock when its parent is killed."""
    for lock in HELD:
        lock.close()
    HELD.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Path]:
    """Makes the folder and holds its lock; the lock dies with the process. Raises InUseError, ResourceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # held until the run ends
    except OSError as error:
        raise ResourceError(f"{folder}: cannot be made: {error.strerror} (choose another run.root)") from error
    with lock:
        try:
            _lock(lock)
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{socket.gethostname()} pid {os.getpid()}".encode())
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise InUseError(f"{folder}: in use by {holder}; wait for it or choose another run.name") from None
        except OSError as error:
            raise ResourceError(f"{folder}: cannot be locked: {error.strerror} (choose another run.root)") from error
        HELD.add(lock)
        try:
            yield folder
        finally:
            HELD.discard(lock)


def _lock(lock: IO[str]) -> None:
    """Raises BlockingIOError where another process holds it. `in_use` may, but only for an instant."""
    for _ in range(TRIES):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def in_use(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with open(folder / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def describe(folder: Path, config: Mapping[str, Any], overrides: Sequence[str], environment: Mapping[str, Any]) -> None:
    """Writes what the run is: config.yaml, overrides.txt and env.json."""
    replace(folder / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True).encode())
    replace(folder / "overrides.txt", "".join(f"{line}\n" for line in overrides).encode())
    write_json(folder / ENVIRONMENT, environment)


def set_state(folder: Path, state: str, **facts: Any) -> dict[str, Any]:
    """Writes result.json: running, interrupted, failed or finished, with what is known by now."""
    result = {"state": state, "error": None, **facts}
    write_json(folder / RESULT, result)
    return result


def ended(folder: Path, error: str, exit_code: int, *states: str) -> None:
    """Records what the process could not: without it the run would read as running until the next look.

    states: in which the record still is; only running where none is given.
    """
    if result_of(folder).get("state") in (states or ("running",)):
        with claimed(folder):
            set_state(folder, "interrupted", error=error, exit_code=exit_code)


def attempts(folder: Path) -> int:
    """How many times this run has been started, this time included."""
    try:
        return int(json.loads((folder / ENVIRONMENT).read_bytes())["attempts"]) + 1
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 1
