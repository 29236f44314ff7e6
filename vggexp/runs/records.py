"""Reads run directories back as plain values, for tables, reports and comparisons.

Needs no torch.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import parse_config
from vggexp.config.run_id import differences, identity, run_name
from vggexp.config.schema import Config
from vggexp.data.catalog import DATASETS
from vggexp.errors import CheckpointError
from vggexp.runs import jsonl
from vggexp.runs.directory import (
    CONFIG,
    ENVIRONMENT,
    METRICS,
    RESULT,
    read_config,
    read_result,
    unused_name,
)
from vggexp.system.locks import is_locked

SKIPPED_FOLDERS = {"checkpoints"}  # never searched for runs
FINGERPRINT_PREFIX = "data."  # of the keys in env.json


class RunRecord(NamedTuple):
    """The files of one run."""

    folder: Path
    state: str  # of `run_state`
    config: dict[str, Any]  # flat: {"optimizer.lr": 0.1}
    result: dict[str, Any]
    rows: list[dict[str, Any]]  # one for each finished epoch, as in metrics.jsonl
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name


def read_run(folder: Path) -> RunRecord:
    """Reads one run. Raises CheckpointError if the files are not what a run writes."""
    config = flatten(read_config(folder))
    result = read_result(folder)
    state = run_state(folder, result)
    rows = jsonl.read(folder / METRICS)
    return RunRecord(folder, state, config, result, rows, _read_environment(folder))


def load_config(folder: Path) -> Config:
    """Returns the configuration of a run. Raises CheckpointError."""
    config, errors = parse_config(read_config(folder))
    if config is None:
        reason = f"not a configuration of this version ({errors[0]})"
        raise CheckpointError(f"{folder / CONFIG}: {reason}")
    return config


def run_state(folder: Path, result: Mapping[str, Any]) -> str:
    """Returns running, interrupted, failed, finished, or `not started` without a result.

    A run whose result says running is interrupted if no process holds its lock.
    """
    state = str(result.get("state", "not started"))
    if state == "running" and not is_locked(folder):
        return "interrupted"
    return state


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Returns the run directories at or below the folders, each once, sorted by name.

    Links are not followed.
    """
    runs: dict[Path, Path] = {}
    for folder in folders:
        for path in _find_below(folder):
            runs[path.resolve()] = path
    return sorted(runs.values(), key=lambda path: (path.name, str(path)))


def _find_below(folder: Path) -> Iterator[Path]:
    for root, subfolders, files in os.walk(folder):
        if CONFIG in files and RESULT in files:
            subfolders.clear()
            yield Path(root)
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)


def _read_environment(folder: Path) -> dict[str, Any]:
    path = folder / ENVIRONMENT
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def run_dir(config: Config) -> Path:
    """Returns the folder of this configuration's run, whether or not the run exists."""
    root = Path(config.run.root)
    name = run_name(config)
    if config.resume == "never":
        name = unused_name(root, name)
    return root / name


def finished_line(config: Config, result: Mapping[str, Any]) -> str:
    """Returns the line that a command prints for a run that is already finished."""
    return f"already finished: test accuracy {result['test/accuracy']:.4f}  {run_dir(config)}"


def finished_result(config: Config) -> dict[str, Any] | None:
    """Returns the result of this configuration's run if the run is finished.

    Raises:
        CheckpointError: the folder holds a run of another configuration, or its files are not
            what a run writes.
    """
    folder = Path(config.run.root) / run_name(config)
    if config.resume == "never" or not folder.exists():
        return None
    result = own_result(config, folder)
    if result.get("state") != "finished":
        return None
    if list(folder.glob("checkpoints/*.tmp")):
        return None  # the run was killed while it wrote its last checkpoint
    if "test/accuracy" not in result:
        raise CheckpointError(f"{folder / RESULT}: not the result of a run that has finished")
    return result


def own_result(config: Config, folder: Path) -> dict[str, Any]:
    """Returns result.json of a folder as far as it speaks of this configuration's run.

    Returns:
        {} without a run. Only the state `interrupted` for a run that this configuration
        continues, with more epochs or by resume=force: that run has another score.

    Raises:
        CheckpointError: the folder holds a run of another configuration, or its files are not
            what a run writes.
    """
    if not (folder / CONFIG).exists():
        return {}
    current = identity(to_plain(config))
    recorded_config = read_config(folder)
    recorded = identity(recorded_config)
    lines = differences(recorded, current)
    if lines and config.resume != "force":
        reason = f"another configuration ({'; '.join(lines)})"
        if recorded.get("data.sha256") != current.get("data.sha256"):
            reason += f"; its images were those of data.root={recorded_config['data']['root']}"
        raise CheckpointError(f"{folder}: {reason}; choose another run.name or resume=force")
    if recorded != current:
        return {"state": "interrupted"}
    return read_result(folder)


def settings(run: RunRecord) -> dict[str, Any]:
    """Returns the keys that determine the result of a run, without the seed."""
    keys = identity(run.config)
    keys.pop("seed", None)
    return keys


def fingerprint(run: RunRecord) -> dict[str, Any]:
    """Returns {file name: SHA-256} of the training and test data; {} if none was recorded."""
    digests = {}
    for key, value in flatten(run.environment).items():
        if key.startswith(FINGERPRINT_PREFIX):
            digests[key.removeprefix(FINGERPRINT_PREFIX)] = value
    return digests


def test_fingerprint(run: RunRecord) -> list[str]:
    """Returns the sorted SHA-256s of the test data, if it has files of its own."""
    info = DATASETS.get(str(run.config.get("data.name")))
    training_files: tuple[str, ...] = ("train",)
    if info is not None and info.train_files:
        training_files = tuple(info.train_files)
    digests = fingerprint(run)
    return sorted(str(digests[name]) for name in digests if name not in training_files)
