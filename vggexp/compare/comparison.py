"""What runs differ in: configuration, code, machine and data, as they were recorded. Needs no torch."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.compare import significance
from vggexp.compare.significance import Interval, MeanEstimate, TestResult
from vggexp.config.keys import flatten
from vggexp.errors import CheckpointError, ConfigError
from vggexp.formatting import format_value
from vggexp.runs import predictions
from vggexp.runs.records import RunRecord, fingerprint, read_run, settings, test_fingerprint

ALL_PAIRS = 4  # groups of which all pairs are tested; of more, only those with the best by validation accuracy
SETTINGS = 3  # keys that a group is described by


CODE = ("commit", "dirty", "versions.")
MACHINE = (
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

Values = dict[str, list[Any]]  # the name of a group of runs -> the value in each of its runs
Differences = dict[str, dict[str, Values]]  # part -> key -> values


class TestedRun(NamedTuple):
    """A finished run and what it scored."""

    run: RunRecord
    seed: int
    test: float
    val: float | None  # None without validation images
    right: Any  # bool [N]: which test images it gets right
    labels: Any  # int [N]


class RunGroup(NamedTuple):
    """Runs that differ only in their seeds, by seed."""

    label: str  # A, B, ...
    settings: str  # in which it differs from other groups: `optimizer.lr=0.01`
    runs: list[TestedRun]
    test: MeanEstimate
    val: MeanEstimate | None

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


class McNemar(NamedTuple):
    """The test on the images that only one of two gets right."""

    only_first: int  # images that only the first gets right; of several seeds, that it gets right with more of them
    only_second: int
    images: int
    p: float
    holm: float | None = None


class GroupPair(NamedTuple):
    """Two groups. p, interval: of the test that is named; holm: p corrected for the number of pairs."""

    first: str
    second: str
    test: (
        str | None
    )  # "paired t", "Welch t", "McNemar" (one run each), None where nothing can be tested
    difference: float  # of mean test accuracies, first minus second
    interval: Interval | None
    p: float | None
    holm: float | None
    mcnemar: McNemar | str  # or why there is no such test


class Comparison(NamedTuple):
    groups: list[RunGroup]
    differences: Differences
    pairs: list[GroupPair]
    base: str | None  # the group that all pairs are with, where not all pairs are tested
    notes: list[str]


def read_tested_run(folders: Sequence[Path]) -> list[TestedRun]:
    """Each run once, in the given order. Raises ConfigError, and CheckpointError for what is not whole or finished."""
    runs = [
        read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()
    ]
    if len(runs) < 2:
        told = f"{len(folders)} times the same" if len(folders) > 1 else str(len(folders))
        raise ConfigError(
            f"RUN: two different run directories or more are compared, given {told}; see --help"
        )
    if unfinished := [f"{run.folder} is {run.state}" for run in runs if run.state != "finished"]:
        raise CheckpointError(f"{', '.join(unfinished)}; only finished runs can be compared")
    return [_tested(run) for run in runs]


def _tested(run: RunRecord) -> TestedRun:
    seed = run.config.get("seed")
    test = run.result.get("test/accuracy")
    val = run.result.get("val/accuracy")
    if not isinstance(seed, int):
        raise CheckpointError(
            f"{run.folder / 'config.yaml'}: seed={format_value(seed)}: not a whole number"
        )
    for name, value in (("test/accuracy", test), ("val/accuracy", 0.0 if val is None else val)):
        if not isinstance(value, float | int) or not 0 <= value <= 1:
            raise CheckpointError(
                f"{run.folder / 'result.json'}: {name} is {format_value(value)}, wanted 0..1"
            )
    kept = predictions.read(run.folder)
    if abs(kept.right.mean() - float(test or 0)) * len(kept.labels) > max(
        1, len(kept.labels) / 1000
    ):  # but for ties
        told = f"accuracy {kept.right.mean():.4f}, but test/accuracy in result.json is {test:.4f}"
        raise CheckpointError(f"{run.folder / predictions.PREDICTIONS}: not of this run: {told}")
    return TestedRun(
        run, seed, float(test or 0), None if val is None else float(val), kept.right, kept.labels
    )


def compare(runs: Sequence[TestedRun], different_data: bool = False) -> Comparison:
    """Raises CheckpointError where the runs' data differs, unless that is asked for."""
    changed = data_differences(runs)
    notes = []
    if changed and not different_data:
        raise CheckpointError(
            f"the runs are not of the same data: {changed}; --different-data compares their means all the same"
        )
    if changed:
        notes.append(
            f"warning: the runs are not of the same data ({changed}): a difference may be the data's"
        )
    if unknown := [str(run.run.folder) for run in runs if not fingerprint(run.run)]:
        notes.append(
            f"warning: no data fingerprint in {', '.join(unknown)}: only the test labels were compared"
        )
    if any(run.run.environment.get("dirty") for run in runs):
        notes.append(
            "note: code with uncommitted changes was used: whether it was the same cannot be told"
        )
    groups, differences = group_runs(runs)
    if differences["configuration"] and differences["code"]:
        notes.append(
            f"note: the code differs as well ({', '.join(differences['code'])}): a difference may be its"
        )
    pairs, base, why = _select_pairs(groups)
    if base:
        notes.append(
            f"note: of {len(groups)} groups, only the pairs with {base}, {why}, are tested"
        )
    return Comparison(groups, differences, pairs, base, notes)


def data_differences(runs: Sequence[TestedRun]) -> str:
    """In what the data of the runs differs, or nothing. A run without a fingerprint is judged by its test labels."""
    known = [of for run in runs if (of := fingerprint(run.run))]
    names = dict.fromkeys(name for each in known for name in each)
    files = [name for name in names if len(distinct(each.get(name) for each in known)) > 1]
    told = [f"other contents of {', '.join(files)}"] if files else []
    if not all(_same_labels(runs[0], run) for run in runs):
        told.append("other test labels")
    return ", ".join(told)


def _same_labels(first: TestedRun, second: TestedRun) -> bool:
    return first.labels.shape == second.labels.shape and bool((first.labels == second.labels).all())


def _same_test(runs: Sequence[TestedRun]) -> bool:
    files = [of for run in runs if (of := test_fingerprint(run.run))]
    return len(distinct(files)) <= 1 and all(_same_labels(runs[0], run) for run in runs)


def group_runs(runs: Sequence[TestedRun]) -> tuple[list[RunGroup], Differences]:
    """Repeats of one setting together. A seed that comes again begins another group: of before and after, say."""
    times: Counter[tuple[str, int]] = Counter()
    places: dict[tuple[str, int], list[TestedRun]] = {}
    for run in runs:
        setting = json.dumps([settings(run.run), fingerprint(run.run)], sort_keys=True, default=str)
        places.setdefault((setting, times[setting, run.seed]), []).append(run)
        times[setting, run.seed] += 1
    named = {
        _label(number): sorted(of, key=lambda run: run.seed)
        for number, of in enumerate(places.values())
    }
    differences = find_differences({label: [run.run for run in of] for label, of in named.items()})
    return [
        _group(label, of, list(differences["configuration"])) for label, of in named.items()
    ], differences


def _label(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_label(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _group(label: str, runs: list[TestedRun], keys: Sequence[str]) -> RunGroup:
    values = settings(runs[0].run)
    told = [f"{key}={format_value(values.get(key))}" for key in keys[:SETTINGS]] + ["..."] * (
        len(keys) > SETTINGS
    )
    vals = [run.val for run in runs if run.val is not None]
    val = significance.estimate_mean(vals) if len(vals) == len(runs) else None
    return RunGroup(
        label, " ".join(told), runs, significance.estimate_mean([run.test for run in runs]), val
    )


def _select_pairs(groups: Sequence[RunGroup]) -> tuple[list[GroupPair], str | None, str]:
    """The tested pairs; where those are not all, the group that they are with, and why with that one."""
    if len(groups) <= ALL_PAIRS:
        return _holm_correct([_pair(*two) for two in combinations(groups, 2)]), None, ""
    means = [group.val.mean for group in groups if group.val]
    if len(means) == len(groups):
        base = groups[means.index(max(means))]
        why = "the best by validation accuracy"
    else:
        base = groups[0]
        why = "the first given (not all runs have a validation accuracy)"
    return (
        _holm_correct([_pair(base, group) for group in groups if group is not base]),
        base.label,
        why,
    )


def _pair(first: RunGroup, second: RunGroup) -> GroupPair:
    images = _images(first, second)
    value = first.test.mean - second.test.mean
    single = len(first.runs) == len(second.runs) == 1
    if single and isinstance(images, McNemar):
        interval = significance.mcnemar_interval(*images[:3])
        return GroupPair(
            first.label, second.label, "McNemar", value, interval, images.p, None, images
        )
    values = [[run.test for run in group.runs] for group in (first, second)]
    by_seed = first.seeds == second.seeds and _same_test([*first.runs, *second.runs])
    name, tested = (
        ("paired t", significance.paired_t_test)
        if by_seed
        else ("Welch t", significance.welch_t_test)
    )
    found: TestResult = tested(*values)
    return GroupPair(
        first.label, second.label, name if found.p is not None else None, *found, None, images
    )


def _images(first: RunGroup, second: RunGroup) -> McNemar | str:
    """An image counts once, whatever the number of seeds: for the group that gets it right with more of them."""
    if not _same_test([*first.runs, *second.runs]):
        return "not the same test images"
    if first.seeds != second.seeds and len(first.runs) + len(second.runs) > 2:
        return "not the same seeds"
    more = sum(run.right.astype(int) for run in first.runs) - sum(
        run.right.astype(int) for run in second.runs
    )
    one = int((more > 0).sum())
    other = int((more < 0).sum())
    return McNemar(one, other, len(more), significance.mcnemar(one, other))


def _holm_correct(pairs: Sequence[GroupPair]) -> list[GroupPair]:
    """With Holm's p, of each kind of test."""
    means = significance.holm([pair.p for pair in pairs])
    images = significance.holm(
        [None if isinstance(pair.mcnemar, str) else pair.mcnemar.p for pair in pairs]
    )
    found = zip(pairs, means, images, strict=True)
    return [
        pair._replace(
            holm=mean, mcnemar=of if isinstance(of := pair.mcnemar, str) else of._replace(holm=p)
        )
        for pair, mean, p in found
    ]


def find_differences(groups: Mapping[str, Sequence[RunRecord]]) -> Differences:
    """Every part with its keys that do not have one value in all runs; None stands where a run has none."""
    recorded = {name: [recorded_parts(run) for run in runs] for name, runs in groups.items()}
    first = next(iter(recorded.values()))[0]
    return {part: _differences_of_part(part, recorded) for part in first}


def _differences_of_part(
    part: str, recorded: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Values]:
    keys = dict.fromkeys(key for runs in recorded.values() for run in runs for key in run[part])
    values = {
        key: {name: [run[part].get(key) for run in runs] for name, runs in recorded.items()}
        for key in keys
    }
    return {
        key: of
        for key, of in values.items()
        if len(distinct(value for each in of.values() for value in each)) > 1
    }


def distinct(values: Iterable[Any]) -> list[Any]:
    """Each value once, in order; also those that cannot be hashed."""
    found: list[Any] = []
    found += (value for value in values if value not in found)
    return found


def recorded_parts(run: RunRecord) -> dict[str, dict[str, Any]]:
    known = flatten(run.environment)
    return {
        "configuration": settings(run),
        "code": {
            key.removeprefix("versions."): value
            for key, value in known.items()
            if key.startswith(CODE)
        },
        "machine": {key: value for key, value in known.items() if key in MACHINE},
        "data": fingerprint(run),
    }
