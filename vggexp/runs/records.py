"""Run directories read back as plain values: what tables, reports and comparisons are made of. Needs no torch."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import ErrorList, parse_config
from vggexp.config.run_id import differences, identity, run_name
from vggexp.config.schema import Config
from vggexp.data.catalog import DATASETS
from vggexp.errors import CheckpointError
from vggexp.runs import jsonl
from vggexp.runs.directory import (
    ENVIRONMENT,
    METRICS,
    RESULT,
    read_config,
    read_result,
    unused_name,
)
from vggexp.system.locks import is_locked

SKIPPED_FOLDERS = {"checkpoints"}  # folders of a run, never looked into


class RunRecord(NamedTuple):
    """One run. state: running (by a process that is there), interrupted, failed or finished."""

    folder: Path
    state: str
    config: dict[str, Any]  # flat: {"optimizer.lr": 0.1}
    result: dict[str, Any]
    rows: list[dict[str, Any]]  # a row for each finished epoch, as metrics.jsonl has them
    environment: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.name


def read_run(folder: Path) -> RunRecord:
    """Raises CheckpointError where the folder is not a run's, or its files are not what a run writes."""
    config = flatten(read_config(folder))
    result = read_result(folder)
    return RunRecord(
        folder,
        run_state(folder, result),
        config,
        result,
        jsonl.read(folder / METRICS),
        _environment(folder),
    )


def load_config(folder: Path) -> Config:
    """What a run was made from. Raises CheckpointError."""
    problems = ErrorList()
    config = parse_config(read_config(folder), problems)
    if config is None:
        raise CheckpointError(
            f"{folder / 'config.yaml'}: not a configuration of this version ({problems[0]})"
        )
    return config


def run_state(folder: Path, result: dict[str, Any]) -> str:
    """As result.json has it, but a run whose process was killed is interrupted; `not started` without a result."""
    state = str(result.get("state", "not started"))
    return "interrupted" if state == "running" and not is_locked(folder) else state


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run directories at or below the given folders, each once, by name. Links are not followed."""
    found = {path.resolve(): path for folder in folders for path in _below(folder)}
    return sorted(found.values(), key=lambda path: (path.name, str(path)))


def _below(folder: Path) -> Iterator[Path]:
    for place, names, files in os.walk(folder):
        if "config.yaml" in files and RESULT in files:
            names.clear()
            yield Path(place)
        names[:] = sorted(name for name in names if name not in SKIPPED_FOLDERS)


def _environment(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / ENVIRONMENT).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / ENVIRONMENT}: cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def run_dir(config: Config) -> Path:
    """Where the run of this configuration lies or will lie."""
    root = Path(config.run.root)
    name = run_name(config)
    return root / (unused_name(root, name) if config.resume == "never" else name)


def finished_line(config: Config, result: Mapping[str, Any]) -> str:
    return f"already finished: test accuracy {result['test/accuracy']:.4f}  {run_dir(config)}"


def finished_result(config: Config) -> dict[str, Any] | None:
    """The result of this very run where it is done already. Raises CheckpointError where another run has the name."""
    folder = Path(config.run.root) / run_name(config)
    if config.resume == "never" or not folder.exists():
        return None
    there = {}
    here = identity(to_plain(config))
    if (folder / "config.yaml").exists():
        there = identity(read_config(folder))
        differing = differences(there, here)
        if differing and config.resume != "force":
            told = "; ".join(differing)
            raise CheckpointError(
                f"{folder}: another configuration ({told}); choose another run.name or resume=force"
            )
    result = read_result(folder)
    if result.get("state") != "finished" or there != here or list(folder.glob("checkpoints/*.tmp")):
        return None  # a temporary file: it was killed while it wrote its last one
    if "test/accuracy" not in result:
        raise CheckpointError(f"{folder / RESULT}: not the result of a run that has finished")
    return result


def settings(run: RunRecord) -> dict[str, Any]:
    """What makes the run what it is, but for the seed."""
    return {key: value for key, value in identity(run.config).items() if key != "seed"}


def fingerprint(run: RunRecord) -> dict[str, Any]:
    """{file name: SHA-256}, of training and test data; empty where none was recorded."""
    known = flatten(run.environment).items()
    return {key.removeprefix("data."): value for key, value in known if key.startswith("data.")}


def test_fingerprint(run: RunRecord) -> list[str]:
    """Of the test data alone, where it is a file of its own."""
    facts = DATASETS.get(str(run.config.get("data.name")))
    training = facts.train_files if facts and facts.train_files else ("train",)
    return sorted(str(value) for name, value in fingerprint(run).items() if name not in training)
