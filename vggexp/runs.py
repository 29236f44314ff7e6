"""Run directories read back as plain values: what tables, reports and comparisons are made of. Needs no torch."""

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.identity import differences, flat, identity, run_name
from vggexp.config.read import Problems, plain, read
from vggexp.config.schema import Config
from vggexp.errors import CheckpointError
from vggexp.rundir import ENVIRONMENT, METRICS, RESULT, config_of, in_use, next_free, result_of
from vggexp.sinks import jsonl

NO_RUNS = {"checkpoints"}  # folders of a run, never looked into


class Run(NamedTuple):
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


def read_run(folder: Path) -> Run:
    """Raises CheckpointError where the folder is not a run's, or its files are not what a run writes."""
    config, result = flat(config_of(folder)), result_of(folder)
    return Run(folder, state_of(folder, result), config, result, jsonl.read(folder / METRICS), _environment(folder))


def configuration(folder: Path) -> Config:
    """What a run was made from. Raises CheckpointError."""
    problems = Problems()
    config = read(config_of(folder), problems)
    if config is None:
        raise CheckpointError(f"{folder / 'config.yaml'}: not a configuration of this version ({problems[0]})")
    return config


def state_of(folder: Path, result: dict[str, Any]) -> str:
    """As result.json has it, but a run whose process was killed is interrupted; `not started` without a result."""
    state = str(result.get("state", "not started"))
    return "interrupted" if state == "running" and not in_use(folder) else state


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run directories at or below the given folders, each once, by name. Links are not followed."""
    found = {path.resolve(): path for folder in folders for path in _below(folder)}
    return sorted(found.values(), key=lambda path: (path.name, str(path)))


def _below(folder: Path) -> Iterator[Path]:
    for place, names, files in os.walk(folder):
        if "config.yaml" in files and RESULT in files:
            names.clear()
            yield Path(place)
        names[:] = sorted(name for name in names if name not in NO_RUNS)


def _environment(folder: Path) -> dict[str, Any]:
    try:
        content = json.loads((folder / ENVIRONMENT).read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / ENVIRONMENT}: cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def folder_of(config: Config) -> Path:
    """Where the run of this configuration lies or will lie."""
    root, name = Path(config.run.root), run_name(config)
    return root / (next_free(root, name) if config.resume == "never" else name)


def finished_line(config: Config, result: Mapping[str, Any]) -> str:
    return f"already finished: test accuracy {result['test/accuracy']:.4f}  {folder_of(config)}"


def finished(config: Config) -> dict[str, Any] | None:
    """The result of this very run where it is done already. Raises CheckpointError where another run has the name."""
    folder = Path(config.run.root) / run_name(config)
    if config.resume == "never" or not folder.exists():
        return None
    there, here = {}, identity(plain(config))
    if (folder / "config.yaml").exists():
        there = identity(config_of(folder))
        differing = differences(there, here)
        if differing and config.resume != "force":
            told = "; ".join(differing)
            raise CheckpointError(f"{folder}: another configuration ({told}); choose another run.name or resume=force")
    result = result_of(folder)
    if result.get("state") != "finished" or there != here or list(folder.glob("checkpoints/*.tmp")):
        return None  # a temporary file: it was killed while it wrote its last one
    if "test/accuracy" not in result:
        raise CheckpointError(f"{folder / RESULT}: not the result of a run that has finished")
    return result
