"""Reads run directories back as plain values, for tables, reports and comparisons.

Needs no torch.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.derived import tested_views
from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import parse_config
from vggexp.config.run_id import differences, identity, run_hash, run_name
from vggexp.config.schema import Config
from vggexp.config.validate import validate
from vggexp.data.catalog import DATASETS
from vggexp.errors import CheckpointError, DataError, ResourceError, VggexpError
from vggexp.runs import jsonl
from vggexp.runs.directory import (
    CLOSED,
    CONFIG,
    ENVIRONMENT,
    EVENTS_PREFIX,
    METRICS,
    PREDICTIONS,
    RESULT,
    is_searchable,
    names_with_hash,
    read_config,
    read_environment,
    read_result,
    unused_name,
)
from vggexp.runs.schema import damaged
from vggexp.runs.sweeps import expand_sweeps
from vggexp.system.locks import is_locked
from vggexp.system.signals import RESUME_HINT

# Keys whose rules a recorded run need not keep: it may name folders that a copied run does not
# have, and a run of an earlier version may have a warm-up before scheduler=onecycle, or one that
# lasts beyond the first milestone.
UNCHECKED_KEYS = ("run", "data.root", "scheduler.warmup_epochs")
FINGERPRINT_PREFIX = "data."  # of the keys in env.json
# What stands in outputs/ beside the runs: a shell pattern such as outputs/* names it too.
NEIGHBORS = ("README.md", "report.csv", "report.html", "report.md", "sweeps")


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
    """Reads one run.

    Raises:
        CheckpointError: the files are not what a run writes.
        ResourceError: a permission or a resource is missing.
    """
    config = flatten(read_config(folder))
    result = read_result(folder)
    state = run_state(folder, result)
    rows = jsonl.read(folder / METRICS)
    return RunRecord(folder, state, config, result, rows, read_environment(folder))


def load_config(folder: Path) -> Config:
    """Returns the configuration of a run.

    Raises:
        CheckpointError: this version does not accept the configuration.
        ResourceError: a permission or a resource is missing.
    """
    config, errors = parse_config(read_config(folder))
    problems = list(errors) if config is None else validate(config, invalid=UNCHECKED_KEYS)
    if config is None or problems:
        reason = f"not a configuration of this version ({problems[0]})"
        raise CheckpointError(f"{folder / CONFIG}: {reason}")
    return config


def run_state(folder: Path, result: Mapping[str, Any]) -> str:
    """Returns running, interrupted, paused, failed, finished, or `not started` without a result.

    A run whose result says running is interrupted if no process holds its lock.
    """
    state = str(result.get("state", "not started"))
    if state == "running" and not is_locked(folder):
        return "interrupted"
    return state


def without_neighbors(paths: Sequence[Path]) -> Sequence[Path]:
    """Returns the paths without the NEIGHBORS of runs; all paths if nothing else is there."""
    runs = [path for path in paths if path.name not in NEIGHBORS or (path / CONFIG).exists()]
    return runs or paths


def find_runs(
    folders: Iterable[Path], skip: Callable[[VggexpError], None] = lambda _: None
) -> list[Path]:
    """Returns the run directories at or below the folders, each once, sorted by name.

    The folder of a sweep stands for its runs. A link to a run directory is followed, a link to
    another folder is not: it may lead in a circle.

    Args:
        skip: receives the reason for each folder that is not searched.
    """
    runs: dict[Path, Path] = {}
    for folder in expand_sweeps(folders, skip):
        for path in _find_below(folder, skip):
            target = path.resolve()
            if target not in runs or not path.is_symlink():  # the folder's own name is better
                runs[target] = path
    return sorted(runs.values(), key=lambda path: (path.name, str(path)))


def _find_below(folder: Path, skip: Callable[[VggexpError], None]) -> Iterator[Path]:
    def report(error: OSError) -> None:
        kind = ResourceError if isinstance(error, PermissionError) else DataError
        skip(kind(f"{error.filename}: cannot be read: {error.strerror}"))

    for root, subfolders, files in os.walk(folder, onerror=report):
        if {CONFIG, RESULT} <= {*files, *subfolders}:
            subfolders.clear()
            yield Path(root)
            continue
        for name in sorted(files):  # among them the links that lead to no folder
            path = Path(root, name)
            if path.is_symlink() and not os.path.exists(path):
                skip(DataError(f"{path}: a link whose target is gone or may not be read"))
        for name in sorted(subfolders):
            path = Path(root, name)
            if not path.is_symlink():
                continue
            if os.path.exists(path / CONFIG) and os.path.exists(path / RESULT):
                yield path
            else:
                skip(DataError(f"{path}: a link to a folder that is no run"))
        subfolders.sort()


def run_dir(config: Config) -> Path:
    """Returns the folder of this configuration's run, whether or not the run exists."""
    if config.resume != "never":
        return _existing_run_dir(config)
    root = Path(config.run.root)
    taken: Collection[int] = ()
    if config.run.name is None:
        taken = names_with_hash(root, run_hash(config)).values()
    return root / unused_name(root, run_name(config), taken)


def resume_hint(config: Config, folder: Path) -> str:
    """Returns how to continue the command's run in `folder`; resume=never starts another one."""
    if config.resume == "never":
        return f"run.name={folder.name} in place of resume=never continues it"
    return RESUME_HINT


def _existing_run_dir(config: Config) -> Path:
    """Returns the folder of the run that `resume` continues.

    The hash at the end of the name decides which run it is: what stands before the hash depends on
    the version, and on how the command was typed. The exact name comes first, then the first by
    name of the folders with the hash that hold this run. A file, a folder without a run, and a
    run of another configuration, which only run.name can have put there, are passed over.
    """
    root = Path(config.run.root)
    folder = root / run_name(config)
    if config.run.name is not None or os.path.lexists(folder):
        return folder
    for name, number in names_with_hash(root, run_hash(config)).items():
        if number == 1 and _holds_run(root / name, config):
            return root / name
    return folder


def _holds_run(folder: Path, config: Config) -> bool:
    try:
        recorded = identity(read_config(folder))
    except (VggexpError, OSError):
        return False
    return recorded == identity(to_plain(config))


def done_line(config: Config, result: Mapping[str, Any]) -> str:
    """Returns the line that a command prints for a run that it leaves as it is.

    Args:
        config: the configuration.
        result: that of `done_result`.
    """
    folder = run_dir(config)
    if result.get("state") == "paused":
        epochs = f"{result['epochs']} of {config.train.epochs} epochs"
        return f"already paused: {epochs} are done (run.until={config.run.until})  {folder}"
    score = f"test accuracy {result['test/accuracy']:.4f}{tested_views(config).suffix}"
    line = f"already finished: {score}  {folder}"
    lost = lost_files(folder, result)
    if not lost:
        return line
    reason = "cannot be written again here; resume=never trains another run"
    return f"{line}  (missing or empty: {', '.join(lost)}: {reason})"


def done_result(config: Config) -> dict[str, Any] | None:
    """Returns the result of this configuration's run if its command has nothing left to do.

    That is result.json of a finished run. With `run.until`, it is the metrics of that epoch of a
    run that is paused there or that has trained on, with the state `paused`. Raises what
    `finished_result` raises.
    """
    result = finished_result(config)
    until = config.run.until
    if result is not None or until is None or config.resume == "never":
        return result
    folder = run_dir(config)
    if not folder.exists():
        return None
    state = own_result(config, folder).get("state")
    rows = epoch_rows(config, folder)
    # A run of exactly so many epochs may have been killed before it could record its pause.
    if len(rows) > until or (len(rows) == until and state == "paused"):
        return {"state": "paused", "epochs": len(rows), **rows[until - 1]}
    return None


def epoch_rows(config: Config, folder: Path) -> list[dict[str, Any]]:
    """Returns the metrics of the epochs that a run of exactly this configuration has finished.

    Returns [] for a run of another configuration, and without a readable record.
    """
    try:
        rows = jsonl.read(folder / METRICS) if _holds_run(folder, config) else []
    except VggexpError:
        return []
    is_complete = [row["epoch"] for row in rows] == list(range(1, len(rows) + 1))
    return rows if is_complete else []


def finished_result(config: Config) -> dict[str, Any] | None:
    """Returns the result of this configuration's run if the run is finished.

    Returns None as well if the run has lost a file that its newest checkpoint can write again.

    Raises:
        CheckpointError: the folder holds a run of another configuration, or its files are not
            what a run writes.
        ResourceError: a permission or a resource is missing.
    """
    folder = _existing_run_dir(config)
    if not is_searchable(folder):
        raise ResourceError(f"{folder}: {CLOSED}")
    if config.resume == "never" or not folder.exists():
        return None
    result = own_result(config, folder)
    if result.get("state") != "finished":
        return None
    if list(folder.glob("checkpoints/*.tmp")):
        return None  # the run was killed while it wrote its last checkpoint
    if result.get("test/accuracy") is None:
        raise damaged(folder / RESULT, "not the result of a run that has finished")
    if lost_files(folder, result) and _can_repair(config, folder, result):
        return None
    return result


def _can_repair(config: Config, folder: Path, result: Mapping[str, Any]) -> bool:
    """Returns whether the run can write its files again from a checkpoint."""
    if config.train.keep == "weights" or not os.access(folder, os.W_OK):
        return False
    if config.train.test_weights == "best":
        return _has_content(folder / "checkpoints" / f"{result.get('weights_step', 0):08d}.pt")
    return any(map(_has_content, _checkpoints(folder)))


def lost_files(folder: Path, result: Mapping[str, Any]) -> list[str]:
    """Returns which files of a finished run are missing or empty, as after a power failure.

    Deleted checkpoints do not count: to delete them saves space.
    """
    if result.get("state") != "finished":
        return []
    names = [METRICS, PREDICTIONS, ENVIRONMENT]
    lost = [name for name in names if not _has_content(folder / name)]
    if not any(map(_has_content, folder.glob(f"{EVENTS_PREFIX}*"))):
        lost.append(f"{EVENTS_PREFIX}*")
    for path in _checkpoints(folder):
        if not _has_content(path):
            lost.append(str(path.relative_to(folder)))
    return lost


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoints/*.pt"))


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


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


def missing_objective(result: Mapping[str, Any], objective: str) -> str:
    """Returns why a run that has finished has no value of the objective; "" if it has one."""
    return "" if result.get(objective) is not None else f"{objective} is not a number"


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
