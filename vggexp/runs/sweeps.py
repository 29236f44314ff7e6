"""Finds the runs of a sweep from the sweep's folder. Needs neither torch, Hydra nor Optuna."""

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml

from vggexp.config import yaml_limits
from vggexp.errors import DataError, VggexpError
from vggexp.formatting import shorten
from vggexp.runs import schema
from vggexp.runs.directory import CONFIG, RESULT, is_searchable, read_result
from vggexp.runs.jsonl import write_json

RUNS = "runs.json"  # written before the first job starts
TABLE = "results.csv"  # written at the end; all that an earlier version left
STUDY = "study.log"  # of a search
MULTIRUN = "multirun.yaml"  # the configuration of the whole sweep
MEANS = "repeats"  # the event files of the means over the seeds, in a folder for each setting
MAX_STUDY_BYTES = 1 << 28
MAX_NAMES_CHARS = 300  # of the sweeps in an error
NO_RUN = "holds no run (a run is a folder with config.yaml and result.json)"


class SweptRun(NamedTuple):
    """A run of a sweep, which need not exist yet."""

    folder: Path
    overrides: list[str]  # of its job; empty if the sweep's folder does not say


def write_runs(folder: Path, runs: Sequence[SweptRun]) -> None:
    """Writes which runs a sweep has. The paths are relative, so that both may be moved together."""
    entries = []
    for run in runs:
        path = os.path.relpath(run.folder, folder)
        entries.append({"run": path, "overrides": list(run.overrides)})
    write_json(folder / RUNS, {"runs": entries})


def read_runs(folder: Path) -> list[SweptRun] | None:
    """Returns the runs of a sweep, each once; None if the folder is not that of a sweep.

    Raises:
        CheckpointError: a file of the sweep is damaged.
        ResourceError: a permission or a resource is missing.
    """
    readers: dict[str, Callable[[Path, bytes], Iterator[SweptRun]]] = {
        RUNS: _from_list,
        STUDY: _from_study,
        TABLE: _from_table,
    }
    if not os.path.isdir(folder) or not is_searchable(folder) or os.path.exists(folder / CONFIG):
        return None
    for name, read in readers.items():
        path = folder / name
        try:
            content = schema.read_bytes(path, MAX_STUDY_BYTES)
            runs = {run.folder: run for run in read(folder, content)}
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, LookupError, AttributeError, csv.Error) as error:
            raise schema.damaged(path, f"not the runs of a sweep: {error}") from error
        return list(runs.values())
    return None


def _from_list(folder: Path, content: bytes) -> Iterator[SweptRun]:
    for entry in schema.parse_object(content)["runs"]:
        path = Path(os.path.normpath(folder / _text(entry["run"])))
        yield SweptRun(path, [_text(override) for override in entry["overrides"]])


def _from_study(folder: Path, content: bytes) -> Iterator[SweptRun]:
    """Yields the runs that Optuna's journal names, one JSON object a line."""
    for line in content.splitlines(keepends=True):
        if b'"user_attr"' in line and line.endswith(b"\n"):  # a kill may have cut the last line
            run = schema.parse_object(line)["user_attr"].get("run")
            if run:
                yield SweptRun(_beside(folder, Path(_text(run)).name), [])


def _from_table(folder: Path, content: bytes) -> Iterator[SweptRun]:
    for row in csv.DictReader(io.StringIO(content.decode())):
        if name := row["run"]:
            yield SweptRun(_beside(folder, Path(name).name), [])


def _beside(folder: Path, name: str) -> Path:
    """Returns the folder of a run: in the sweep's run.root, which is mostly two levels up."""
    standard = Path(os.path.normpath(folder / ".." / ".." / name))
    if standard.exists():
        return standard
    try:
        config = yaml_limits.load(schema.read_bytes(folder / MULTIRUN).decode())
        return Path(config["run"]["root"], name)
    except (OSError, VggexpError, ValueError, TypeError, LookupError, yaml.YAMLError):
        return standard


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def expand_sweeps(
    folders: Iterable[Path], skip: Callable[[VggexpError], None] = lambda _: None
) -> list[Path]:
    """Returns the folders, with the runs of a sweep in place of the sweep's folder.

    Args:
        skip: receives the reason for each sweep, and for the runs of a sweep, that are left out.
    """
    expanded = []
    for folder in folders:
        try:
            runs = read_runs(folder)
        except VggexpError as error:
            skip(error)
            continue
        if runs is None:
            expanded.append(folder)
            continue
        started = [run.folder for run in runs if _is_run(run.folder)]
        if len(started) < len(runs):
            missing = len(runs) - len(started)
            skip(DataError(f"{folder}: {missing} of its {len(runs)} runs do not exist (yet)"))
        expanded += started
    return expanded


def runs_in_state(path: Path, state: str, skip: Callable[[str], None]) -> list[Path]:
    """Returns a run, or those runs of a sweep that are in a state, or may not be read.

    Args:
        state: such as `finished`.
        skip: receives the reason for what is left out.
    """
    runs = expand_sweeps([path], lambda error: skip(str(error)))
    if runs == [path]:
        return runs
    kept = []
    for run in runs:
        if not is_searchable(run) or read_result(run).get("state") == state:
            kept.append(run)
    if len(kept) < len(runs):
        skip(f"{path}: {len(runs) - len(kept)} of its {len(runs)} runs are not {state}")
    return kept


def name_sweeps(folder: Path) -> str:
    """Returns advice to give one of the sweeps in a folder that holds no run; "" without any."""
    try:
        inside = [path for path in sorted(folder.iterdir()) if _is_sweep(path)]
    except OSError:
        return ""
    names = shorten(", ".join(map(str, inside)), MAX_NAMES_CHARS)
    return f"; give one of its sweeps: {names}" if inside else ""


def _is_sweep(folder: Path) -> bool:
    return any(os.path.exists(folder / name) for name in (RUNS, STUDY, TABLE))


def _is_run(folder: Path) -> bool:
    return os.path.exists(folder / CONFIG) and os.path.exists(folder / RESULT)
