"""Finished runs compared: grouped into repeats of one setting, and each two groups tested against each other."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from vggexp import predictions, significance
from vggexp.config.read import shown
from vggexp.differing import Differences, differing, distinct, fingerprint, settings, test_fingerprint
from vggexp.errors import CheckpointError, ConfigError
from vggexp.runs import Run, read_run
from vggexp.significance import Difference, Interval, Mean

ALL_PAIRS = 4  # groups of which all pairs are tested; of more, only those with the best by validation accuracy
SETTINGS = 3  # keys that a group is described by


class Tested(NamedTuple):
    """A finished run and what it scored."""

    run: Run
    seed: int
    test: float
    val: float | None  # None without validation images
    right: Any  # bool [N]: which test images it gets right
    labels: Any  # int [N]


class Group(NamedTuple):
    """Runs that differ only in their seeds, by seed."""

    label: str  # A, B, ...
    settings: str  # in which it differs from other groups: `optimizer.lr=0.01`
    runs: list[Tested]
    test: Mean
    val: Mean | None

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


class Pair(NamedTuple):
    """Two groups. p, interval: of the test that is named; holm: p corrected for the number of pairs."""

    first: str
    second: str
    test: str | None  # "paired t", "Welch t", "McNemar" (one run each), None where nothing can be tested
    difference: float  # of mean test accuracies, first minus second
    interval: Interval | None
    p: float | None
    holm: float | None
    mcnemar: McNemar | str  # or why there is no such test


class Comparison(NamedTuple):
    groups: list[Group]
    differences: Differences
    pairs: list[Pair]
    base: str | None  # the group that all pairs are with, where not all pairs are tested
    notes: list[str]


def read(folders: Sequence[Path]) -> list[Tested]:
    """Each run once, in the given order. Raises ConfigError, and CheckpointError for what is not whole or finished."""
    runs = [read_run(folder) for folder in {folder.resolve(): folder for folder in folders}.values()]
    if len(runs) < 2:
        told = f"{len(folders)} times the same" if len(folders) > 1 else str(len(folders))
        raise ConfigError(f"RUN: two different run directories or more are compared, given {told}; see --help")
    if unfinished := [f"{run.folder} is {run.state}" for run in runs if run.state != "finished"]:
        raise CheckpointError(f"{', '.join(unfinished)}; only finished runs can be compared")
    return [_tested(run) for run in runs]


def _tested(run: Run) -> Tested:
    seed, test, val = run.config.get("seed"), run.result.get("test/accuracy"), run.result.get("val/accuracy")
    if not isinstance(seed, int):
        raise CheckpointError(f"{run.folder / 'config.yaml'}: seed={shown(seed)}: not a whole number")
    for name, value in (("test/accuracy", test), ("val/accuracy", 0.0 if val is None else val)):
        if not isinstance(value, float | int) or not 0 <= value <= 1:
            raise CheckpointError(f"{run.folder / 'result.json'}: {name} is {shown(value)}, wanted 0..1")
    kept = predictions.read(run.folder)
    if abs(kept.right.mean() - float(test or 0)) * len(kept.labels) > max(1, len(kept.labels) / 1000):  # but for ties
        told = f"accuracy {kept.right.mean():.4f}, but test/accuracy in result.json is {test:.4f}"
        raise CheckpointError(f"{run.folder / predictions.PREDICTIONS}: not of this run: {told}")
    return Tested(run, seed, float(test or 0), None if val is None else float(val), kept.right, kept.labels)


def compare(runs: Sequence[Tested], different_data: bool = False) -> Comparison:
    """Raises CheckpointError where the runs' data differs, unless that is asked for."""
    changed, notes = changed_data(runs), []
    if changed and not different_data:
        raise CheckpointError(
            f"the runs are not of the same data: {changed}; --different-data compares their means all the same"
        )
    if changed:
        notes.append(f"warning: the runs are not of the same data ({changed}): a difference may be the data's")
    if unknown := [str(run.run.folder) for run in runs if not fingerprint(run.run)]:
        notes.append(f"warning: no data fingerprint in {', '.join(unknown)}: only the test labels were compared")
    if any(run.run.environment.get("dirty") for run in runs):
        notes.append("note: code with uncommitted changes was used: whether it was the same cannot be told")
    groups, differences = grouped(runs)
    if differences["configuration"] and differences["code"]:
        notes.append(f"note: the code differs as well ({', '.join(differences['code'])}): a difference may be its")
    pairs, base, why = _paired(groups)
    if base:
        notes.append(f"note: of {len(groups)} groups, only the pairs with {base}, {why}, are tested")
    return Comparison(groups, differences, pairs, base, notes)


def changed_data(runs: Sequence[Tested]) -> str:
    """In what the data of the runs differs, or nothing. A run without a fingerprint is judged by its test labels."""
    known = [of for run in runs if (of := fingerprint(run.run))]
    names = dict.fromkeys(name for each in known for name in each)
    files = [name for name in names if len(distinct(each.get(name) for each in known)) > 1]
    told = [f"other contents of {', '.join(files)}"] if files else []
    if not all(_same_labels(runs[0], run) for run in runs):
        told.append("other test labels")
    return ", ".join(told)


def _same_labels(first: Tested, second: Tested) -> bool:
    return first.labels.shape == second.labels.shape and bool((first.labels == second.labels).all())


def _same_test(runs: Sequence[Tested]) -> bool:
    files = [of for run in runs if (of := test_fingerprint(run.run))]
    return len(distinct(files)) <= 1 and all(_same_labels(runs[0], run) for run in runs)


def grouped(runs: Sequence[Tested]) -> tuple[list[Group], Differences]:
    """Repeats of one setting together. A seed that comes again begins another group: of before and after, say."""
    times: Counter[tuple[str, int]] = Counter()
    places: dict[tuple[str, int], list[Tested]] = {}
    for run in runs:
        setting = json.dumps([settings(run.run), fingerprint(run.run)], sort_keys=True, default=str)
        places.setdefault((setting, times[setting, run.seed]), []).append(run)
        times[setting, run.seed] += 1
    named = {_label(number): sorted(of, key=lambda run: run.seed) for number, of in enumerate(places.values())}
    differences = differing({label: [run.run for run in of] for label, of in named.items()})
    return [_group(label, of, list(differences["configuration"])) for label, of in named.items()], differences


def _label(number: int) -> str:
    """A, B, ..., Z, AA, AB, ..."""
    return (_label(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def _group(label: str, runs: list[Tested], keys: Sequence[str]) -> Group:
    values = settings(runs[0].run)
    told = [f"{key}={shown(values.get(key))}" for key in keys[:SETTINGS]] + ["..."] * (len(keys) > SETTINGS)
    vals = [run.val for run in runs if run.val is not None]
    val = significance.mean(vals) if len(vals) == len(runs) else None
    return Group(label, " ".join(told), runs, significance.mean([run.test for run in runs]), val)


def _paired(groups: Sequence[Group]) -> tuple[list[Pair], str | None, str]:
    """The tested pairs; where those are not all, the group that they are with, and why with that one."""
    if len(groups) <= ALL_PAIRS:
        return _corrected([_pair(*two) for two in combinations(groups, 2)]), None, ""
    means = [group.val.mean for group in groups if group.val]
    if len(means) == len(groups):
        base, why = groups[means.index(max(means))], "the best by validation accuracy"
    else:
        base, why = groups[0], "the first given (not all runs have a validation accuracy)"
    return _corrected([_pair(base, group) for group in groups if group is not base]), base.label, why


def _pair(first: Group, second: Group) -> Pair:
    images, value = _images(first, second), first.test.mean - second.test.mean
    single = len(first.runs) == len(second.runs) == 1
    if single and isinstance(images, McNemar):
        interval = significance.mcnemar_interval(*images[:3])
        return Pair(first.label, second.label, "McNemar", value, interval, images.p, None, images)
    values = [[run.test for run in group.runs] for group in (first, second)]
    by_seed = first.seeds == second.seeds and _same_test([*first.runs, *second.runs])
    name, tested = ("paired t", significance.paired) if by_seed else ("Welch t", significance.welch)
    found: Difference = tested(*values)
    return Pair(first.label, second.label, name if found.p is not None else None, *found, None, images)


def _images(first: Group, second: Group) -> McNemar | str:
    """An image counts once, whatever the number of seeds: for the group that gets it right with more of them."""
    if not _same_test([*first.runs, *second.runs]):
        return "not the same test images"
    if first.seeds != second.seeds and len(first.runs) + len(second.runs) > 2:
        return "not the same seeds"
    more = sum(run.right.astype(int) for run in first.runs) - sum(run.right.astype(int) for run in second.runs)
    one, other = int((more > 0).sum()), int((more < 0).sum())
    return McNemar(one, other, len(more), significance.mcnemar(one, other))


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """With Holm's p, of each kind of test."""
    means = significance.holm([pair.p for pair in pairs])
    images = significance.holm([None if isinstance(pair.mcnemar, str) else pair.mcnemar.p for pair in pairs])
    found = zip(pairs, means, images, strict=True)
    return [
        pair._replace(holm=mean, mcnemar=of if isinstance(of := pair.mcnemar, str) else of._replace(holm=p))
        for pair, mean, p in found
    ]
