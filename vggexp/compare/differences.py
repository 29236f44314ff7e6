"""Lists what runs differ in: recorded configuration, code, machine and data. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vggexp.config.keys import flatten
from vggexp.runs.records import RunRecord, fingerprint, settings

CODE_KEYS = ("commit", "dirty", "versions.", "numerics")
MACHINE_KEYS = (
    "host",
    "system",
    "processor",
    "cores",
    "threads",
    "device",
    "device_name",
    "cpu_capability",
    "precision",
)

ValuesByGroup = dict[str, list[Any]]  # label of a group -> value in each of its runs
Differences = dict[str, dict[str, ValuesByGroup]]  # part -> key -> values


def find_differences(groups: Mapping[str, Sequence[RunRecord]]) -> Differences:
    """Returns for each part the keys that do not have one value in all runs.

    A run without the key has the value None.
    """
    recorded = {label: [recorded_parts(run) for run in runs] for label, runs in groups.items()}
    first_run = next(iter(recorded.values()))[0]
    return {part: _differences_of_part(part, recorded) for part in first_run}


def _differences_of_part(
    part: str, recorded: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, ValuesByGroup]:
    all_runs = [run[part] for runs in recorded.values() for run in runs]
    differences = {}
    for key in dict.fromkeys(key for run in all_runs for key in run):
        if len(distinct(run.get(key) for run in all_runs)) > 1:
            differences[key] = {
                label: [run[part].get(key) for run in runs] for label, runs in recorded.items()
            }
    return differences


def distinct(values: Iterable[Any]) -> list[Any]:
    """Returns each value once, in order; the values need not be hashable."""
    unique: list[Any] = []
    for value in values:
        if value not in unique:
            unique.append(value)
    return unique


def recorded_parts(run: RunRecord) -> dict[str, dict[str, Any]]:
    """Returns the recorded values of a run by part: configuration, code, machine and data."""
    code = {}
    machine = {}
    for key, value in flatten(run.environment).items():
        if key.startswith(CODE_KEYS):
            code[key.removeprefix("versions.")] = value
        elif key in MACHINE_KEYS:
            machine[key] = value
    return {
        "configuration": settings(run),
        "code": code,
        "machine": machine,
        "data": fingerprint(run),
    }
