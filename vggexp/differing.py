"""What runs differ in: configuration, code, machine and data, as they were recorded. Needs no torch."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vggexp.config.identity import flat, identity
from vggexp.data.catalogue import FACTS
from vggexp.runs import Run

CODE = ("commit", "dirty", "versions.")
MACHINE = ("host", "system", "processor", "cores", "threads", "device", "device_name", "cpu_capability", "precision")

Values = dict[str, list[Any]]  # the name of a group of runs -> the value in each of its runs
Differences = dict[str, dict[str, Values]]  # part -> key -> values


def differing(groups: Mapping[str, Sequence[Run]]) -> Differences:
    """Every part with its keys that do not have one value in all runs; None stands where a run has none."""
    recorded = {name: [parts(run) for run in runs] for name, runs in groups.items()}
    first = next(iter(recorded.values()))[0]
    return {part: _differing(part, recorded) for part in first}


def _differing(part: str, recorded: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Values]:
    keys = dict.fromkeys(key for runs in recorded.values() for run in runs for key in run[part])
    values = {key: {name: [run[part].get(key) for run in runs] for name, runs in recorded.items()} for key in keys}
    return {key: of for key, of in values.items() if len(distinct(value for each in of.values() for value in each)) > 1}


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order; also those that cannot be hashed."""
    found: list[Any] = []
    found += (value for value in values if value not in found)
    return found


def parts(run: Run) -> dict[str, dict[str, Any]]:
    known = flat(run.environment)
    return {
        "configuration": settings(run),
        "code": {key.removeprefix("versions."): value for key, value in known.items() if key.startswith(CODE)},
        "machine": {key: value for key, value in known.items() if key in MACHINE},
        "data": fingerprint(run),
    }


def settings(run: Run) -> dict[str, Any]:
    """What makes the run what it is, but for the seed."""
    return {key: value for key, value in identity(run.config).items() if key != "seed"}


def fingerprint(run: Run) -> dict[str, Any]:
    """{file name: SHA-256}, of training and test data; empty where none was recorded."""
    known = flat(run.environment).items()
    return {key.removeprefix("data."): value for key, value in known if key.startswith("data.")}


def test_fingerprint(run: Run) -> list[str]:
    """Of the test data alone, where it is a file of its own."""
    facts = FACTS.get(str(run.config.get("data.name")))
    training = facts.train_files if facts and facts.train_files else ("train",)
    return sorted(str(value) for name, value in fingerprint(run).items() if name not in training)
