"""Shows runs to TensorBoard under readable names: folders of links to the runs' event files.

TensorBoard names a run after its folder. Its older loader follows no link to a folder, so each run
has a folder of its own with links to files. Nothing is copied, and a run is not written to.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vggexp.config.keys import varying_keys
from vggexp.config.run_id import can_change_result
from vggexp.errors import DataError, VggexpError
from vggexp.runs.directory import EVENTS_PREFIX, read_overrides
from vggexp.runs.records import find_runs
from vggexp.runs.sweeps import MEANS, NO_RUN, name_sweeps, read_runs

UNSAFE = r"[^ -~]|[/\\]"  # in the name of a folder
MAX_NAME_CHARS = 100  # a longer name is cut in TensorBoard's list; the folder's is shorter
EVALUATIONS = "evaluations"  # the folder of a run in which vggexp.evaluate writes

Settings = dict[str, str]  # what was typed, by key, without what makes no other run


@dataclass
class ShownRuns:
    """The runs that TensorBoard shows. A run keeps its name when others are added."""

    folders: Sequence[Path]  # as typed; the folder of a sweep stands for its runs
    keys: list[str] = field(default_factory=list)  # of the settings in a name
    names: dict[Path, str] = field(default_factory=dict)  # by the real path of the folder

    def update(self) -> None:
        """Finds the runs of the folders and the means of the sweeps, and names those that are new.

        The keys of the names are those in which the first runs differ.
        """
        settings: dict[Path, Settings] = {}
        for folder in self.folders:
            settings |= {run: typed for run, typed in typed_settings(folder) if run not in settings}
        if not self.names:
            self.keys = varying_keys([typed for typed in settings.values() if typed])
        for run, typed in settings.items():
            self._add(run, _setting_name(typed, self.keys))
        for folder in self.folders:
            for mean in sorted((folder / MEANS).glob("*")):
                self._add(mean.resolve(), f"mean of {mean.name}")

    def _add(self, folder: Path, name: str) -> None:
        if folder not in self.names:
            self.names[folder] = _unused_name(folder, name, set(self.names.values()))


def typed_settings(folder: Path) -> Iterator[tuple[Path, Settings]]:
    """Yields the real path of each run at or below a folder, and what was typed for the run."""
    swept = read_runs(folder)
    if swept is None:
        for run_dir in find_runs([folder]):
            yield run_dir.resolve(), _parse(read_overrides(run_dir) or [])
        return
    for run in swept:
        yield run.folder.resolve(), _parse(run.overrides or read_overrides(run.folder) or [])


def _parse(overrides: Sequence[str]) -> Settings:
    settings = {}
    for override in overrides:
        text, _, value = override.partition("=")
        key = text.lstrip("+~")
        if not override.startswith("-") and can_change_result(key):  # a flag chooses files
            settings[key] = value
    return settings


def _setting_name(typed: Settings, keys: Sequence[str]) -> str:
    """Returns `arch=vgg13,optimizer.lr=0.05`."""
    return ",".join(f"{key}={typed[key]}" for key in keys if key in typed)


def _unused_name(run: Path, name: str, used: set[str]) -> str:
    """Returns the name, or that of the folder if the name is empty, too long or in use.

    Characters that have a meaning in a path, or take more than one byte, become `_`.
    """
    name = re.sub(UNSAFE, "_", name)
    if not name or name in used or len(name) > MAX_NAME_CHARS:
        name = re.sub(UNSAFE, "_", run.name) or "run"
    number = 1
    candidate = name
    while candidate in used:
        number += 1
        candidate = f"{name}-{number}"
    return candidate


def check_folders(folders: Sequence[Path]) -> None:
    """Checks that every folder holds a run, or is the folder of a sweep that has one.

    Raises:
        DataError: a folder holds none.
        CheckpointError: a file of a sweep is damaged.
        ResourceError: a permission is missing.
    """
    empty = []
    for folder in folders:
        errors: list[VggexpError] = []
        if not find_runs([folder], errors.append):
            empty.append(f"{folder}: {NO_RUN}{name_sweeps(folder)}")
            for error in errors:
                if not isinstance(error, DataError):
                    raise error
    if empty:
        raise DataError("; ".join(empty))


def link_event_files(names: Mapping[Path, str], target: Path) -> None:
    """Links the event files of the runs below `target`, and removes the links of lost files."""
    for link in target.rglob(f"{EVENTS_PREFIX}*"):
        if not link.exists():
            link.unlink()
    for run, name in names.items():
        for file in _event_files(run):
            link = target / name / file.relative_to(run)
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(file)


def _event_files(run: Path) -> Iterator[Path]:
    yield from run.glob(f"{EVENTS_PREFIX}*")
    yield from (run / EVALUATIONS).rglob(f"{EVENTS_PREFIX}*")
