"""Finds the data of a run: moved, or used from another working directory. Needs no torch."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from vggexp.config.schema import Config
from vggexp.errors import ConfigError, DataError
from vggexp.runs.directory import read_environment
from vggexp.runs.environment import WORKING_DIRECTORY
from vggexp.system.files import folder_problem

HELP = "folder that holds the run's data now (default: data.root of the run)"  # of --data
WITHOUT_FILES = ("digits", "synthetic", "FakeData")  # data sets that no folder holds


def locate_data(config: Config, folder: Path, data: Path | None) -> Config:
    """Returns the configuration of a run with the place that its data has now.

    A relative data.root belongs to the folder in which the run was started. If the data is no
    longer there, it belongs to the working directory.

    Args:
        config: the configuration of the run.
        folder: the run directory.
        data: the value of --data.

    Raises:
        ConfigError: `data` is no folder, or the data set has no files.
    """
    if data is not None:
        _check(config, data)
        return replace(config, data=replace(config.data, root=str(data), download=False))
    if config.data.root is None:
        return config
    root = resolve_root(config.data.root, read_environment(folder))
    return replace(config, data=replace(config.data, root=str(root)))


@contextlib.contextmanager
def hint_at_moved_data() -> Iterator[None]:
    """Names --data in the errors of data that is missing or damaged."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{error} (--data FOLDER gives the place of moved data)") from error


def resolve_root(root: str, environment: Mapping[str, Any]) -> Path:
    """Returns data.root as the run meant it if it is still there, else as it stands.

    Args:
        root: data.root of the run.
        environment: env.json of the run.
    """
    start = environment.get(WORKING_DIRECTORY)
    started_root = Path(start if isinstance(start, str) else "", root)  # an absolute root stays
    return started_root if started_root.is_dir() else Path(root)


def _check(config: Config, data: Path) -> None:
    if config.data.name in WITHOUT_FILES:
        raise ConfigError(f"--data {data}: data={config.data.name} reads no folder; leave it out")
    if problem := folder_problem(data):
        raise ConfigError(f"--data {data}: {problem}")
