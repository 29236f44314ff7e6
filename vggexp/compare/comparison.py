"""Groups finished runs and tests the groups against each other. Needs no torch."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy

from vggexp.compare import significance
from vggexp.compare.differences import Differences, distinct, find_differences
from vggexp.compare.significance import Interval, MeanEstimate, TestResult
from vggexp.data.image_views import ImageViews, recorded_views
from vggexp.errors import CheckpointError, ConfigError
from vggexp.formatting import format_value
from vggexp.runs import predictions
from vggexp.runs.continuation import check_states
from vggexp.runs.records import RunRecord, fingerprint, read_run, settings, test_fingerprint

# Up to this number of groups, all pairs are tested. With more groups, every group is tested
# against the best by validation accuracy only.
MAX_GROUPS_FOR_ALL_PAIRS = 4

MAX_LABEL_SETTINGS = 3  # number of settings in the description of a group

# The recorded accuracy and the accuracy of the predictions may differ by this share of the images:
# classes with the same probability may be ordered differently.
MAX_TIED_SHARE = 0.001


class TestedRun(NamedTuple):
    """A finished run with its accuracies."""

    record: RunRecord
    seed: int
    test_accuracy: float
    val_accuracy: float | None  # None without validation images
    correct: Any  # bool [N]: which test images are classified correctly
    labels: Any  # int [N]


class RunGroup(NamedTuple):
    """Runs that differ only in their seeds, ordered by seed."""

    label: str  # A, B, ...
    settings: str  # settings in which the groups differ, for example `optimizer.lr=0.01`
    runs: list[TestedRun]
    test_accuracy: MeanEstimate
    val_accuracy: MeanEstimate | None

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]


class McNemar(NamedTuple):
    """McNemar's test on the images that only one of two groups classifies correctly."""

    only_first: (
        int  # images that more runs of the first group than of the second classify correctly
    )
    only_second: int
    images: int
    p: float
    holm: float | None = None  # p corrected for the number of pairs


class GroupPair(NamedTuple):
    """Two groups and their tests. `interval` and `p` belong to the test named in `test`."""

    first: str
    second: str
    test: (
        str | None
    )  # "paired t", "Welch t", "McNemar" (one run each); None if nothing can be tested
    difference: float  # of mean test accuracies, first minus second
    interval: Interval | None
    p: float | None
    holm: float | None  # p corrected for the number of pairs
    mcnemar: McNemar | None
    mcnemar_refusal: str  # why `mcnemar` is None


class TestedPairs(NamedTuple):
    """The tested pairs of groups."""

    pairs: list[GroupPair]
    base: str | None  # label of the group in every pair; None if all pairs are tested
    base_reason: str  # why that group is the base


class Comparison(NamedTuple):
    """Everything that the command prints. `base` is None if all pairs of groups are tested."""

    groups: list[RunGroup]
    differences: Differences
    pairs: list[GroupPair]
    base: str | None
    notes: list[str]


def read_tested_runs(folders: Sequence[Path]) -> list[TestedRun]:
    """Reads each run once, in the order of the arguments.

    Raises:
        ConfigError: Fewer than two different runs.
        CheckpointError: A run is not finished, or one of its files is damaged.
    """
    unique = {folder.resolve(): folder for folder in folders}
    runs = [read_run(folder) for folder in unique.values()]
    if len(runs) < 2:
        count = str(len(folders))
        if len(folders) > 1:
            count = f"{len(folders)} times the same"
        raise ConfigError(
            f"RUN: two different run directories or more are compared, given {count}; see --help"
        )
    check_states(runs, "compared")
    return [_read_tested_run(run) for run in runs]


def _read_tested_run(run: RunRecord) -> TestedRun:
    seed = run.config.get("seed")
    if not isinstance(seed, int):
        path = run.folder / "config.yaml"
        raise CheckpointError(f"{path}: seed={format_value(seed)}: not a whole number")
    test_accuracy = run.result.get("test/accuracy")
    val_accuracy = run.result.get("val/accuracy")
    if test_accuracy is None:
        raise CheckpointError(f"{run.folder / 'result.json'}: has no test/accuracy")
    stored = predictions.read(run.folder, run.config)
    correct = stored.correct
    images = len(stored.labels)
    tolerance = max(1, images * MAX_TIED_SHARE)  # in images
    if abs(correct.mean() - test_accuracy) * images > tolerance:
        path = run.folder / predictions.PREDICTIONS
        raise CheckpointError(
            f"{path}: not of this run: accuracy {correct.mean():.4f}, "
            f"but test/accuracy in result.json is {test_accuracy:.4f}"
        )
    return TestedRun(run, seed, test_accuracy, val_accuracy, correct, stored.labels)


def compare(runs: Sequence[TestedRun], different_data: bool = False) -> Comparison:
    """Groups the runs and tests the groups against each other.

    Args:
        runs: At least two.
        different_data: Compare runs of different data too, with a warning.

    Raises:
        CheckpointError: The data differs and `different_data` is not set.
    """
    changes = data_differences(runs)
    if changes and not different_data:
        raise CheckpointError(
            f"the runs are not of the same data: {changes}; "
            "--different-data compares their means all the same"
        )
    groups, differences = group_runs(runs)
    tested = _test_pairs(groups)
    notes = _data_notes(runs, changes) + _copy_notes(runs) + _view_notes(runs)
    notes += _code_notes(runs, differences)
    if tested.base:
        notes.append(
            f"note: of {len(groups)} groups, only the pairs with {tested.base}, "
            f"{tested.base_reason}, are tested"
        )
    return Comparison(groups, differences, tested.pairs, tested.base, notes)


def _data_notes(runs: Sequence[TestedRun], changes: str) -> list[str]:
    notes = []
    if changes:
        notes.append(
            f"warning: the runs are not of the same data ({changes}): "
            "the data may be the cause of a difference"
        )
    unknown = [str(run.record.folder) for run in runs if not fingerprint(run.record)]
    if unknown:
        notes.append(
            f"warning: no data fingerprint in {', '.join(unknown)}: "
            "only the test labels were compared"
        )
    return notes


def _copy_notes(runs: Sequence[TestedRun]) -> list[str]:
    folders: dict[str, list[str]] = {}  # by the hash of the final weights
    for run in runs:
        if weights := run.record.result.get("weights_sha256"):
            folders.setdefault(weights, []).append(str(run.record.folder))
    return [
        f"note: {' and '.join(names)} have the same weights, bit for bit: "
        "copies of one run, or a training repeated exactly"
        for names in folders.values()
        if len(names) > 1
    ]


def _view_notes(runs: Sequence[TestedRun]) -> list[str]:
    folders: dict[ImageViews, list[str]] = {}
    for run in runs:
        views = recorded_views(run.record.config)
        folders.setdefault(views, []).append(str(run.record.folder))
    if len(folders) == 1:
        return []
    tests = []
    for views, names in folders.items():
        tests.append(f"{', '.join(names)} with {views.description or 'the image alone'}")
    most = max(folders, key=lambda views: views.count)
    return [
        f"warning: the tests see different views of an image ({'; '.join(tests)}), "
        "which may be the cause of a difference; "
        f"`vggexp.evaluate RUN {most.flags}` gives the other runs' scores with {most.description}"
    ]


def _code_notes(runs: Sequence[TestedRun], differences: Differences) -> list[str]:
    notes = []
    if any(run.record.environment.get("dirty") for run in runs):
        notes.append(
            "note: code with uncommitted changes was used: "
            "it may differ between runs of the same commit"
        )
    if differences["configuration"] and differences["code"]:
        notes.append(
            f"note: the code differs as well ({', '.join(differences['code'])}): "
            "it may be the cause of a difference"
        )
    return notes


def data_differences(runs: Sequence[TestedRun]) -> str:
    """Describes in what the data of the runs differs; empty if it is the same.

    Of runs without a fingerprint only the test labels are compared.
    """
    fingerprints = []
    names: dict[str, None] = {}
    for run in runs:
        files = fingerprint(run.record)
        if files:
            fingerprints.append(files)
            names.update(dict.fromkeys(files))
    changed_files = []
    for name in names:
        hashes = [files.get(name) for files in fingerprints]
        if len(distinct(hashes)) > 1:
            changed_files.append(name)
    changes = []
    if changed_files:
        changes.append(f"other contents of {', '.join(changed_files)}")
    if not _have_same_labels(runs):
        changes.append(_label_difference(runs))
    return ", ".join(changes)


def _label_difference(runs: Sequence[TestedRun]) -> str:
    counts = distinct([len(run.labels) for run in runs])
    if len(counts) == 1:
        return "other test labels"
    return f"tested on {' and '.join(f'{count:,}' for count in counts)} images"


def _have_same_labels(runs: Sequence[TestedRun]) -> bool:
    expected = runs[0].labels
    for run in runs:
        if run.labels.shape != expected.shape:
            return False
        if (run.labels != expected).any():
            return False
    return True


def _have_same_test_set(runs: Sequence[TestedRun]) -> bool:
    fingerprints = [test_fingerprint(run.record) for run in runs]
    known = [files for files in fingerprints if files]
    return len(distinct(known)) <= 1 and _have_same_labels(runs)


def group_runs(runs: Sequence[TestedRun]) -> tuple[list[RunGroup], Differences]:
    """Groups runs with the same settings and data.

    A repeated seed begins another group. So runs before and after a change of the code form two.
    """
    repeats: Counter[tuple[str, int]] = Counter()
    members: dict[tuple[str, int], list[TestedRun]] = {}
    for run in runs:
        parts = [settings(run.record), fingerprint(run.record)]
        setting = json.dumps(parts, sort_keys=True, default=str)
        members.setdefault((setting, repeats[setting, run.seed]), []).append(run)
        repeats[setting, run.seed] += 1
    labeled = {}
    for index, group in enumerate(members.values()):
        labeled[_label(index)] = sorted(group, key=lambda run: run.seed)
    records = {label: [run.record for run in group] for label, group in labeled.items()}
    differences = find_differences(records)
    keys = _named_keys(list(differences["configuration"]), [run.record for run in runs])
    groups = [_build_group(label, group, keys) for label, group in labeled.items()]
    return groups, differences


def _named_keys(keys: Sequence[str], records: Sequence[RunRecord]) -> list[str]:
    """Returns the keys with `run.network` in place of `arch.blocks`, if the names say as much."""
    names = [record.config.get("run.network") for record in records]
    blocks = [record.config.get("arch.blocks") for record in records]
    pairs = distinct(list(zip(names, blocks, strict=True)))
    if None in names or len(pairs) > len(distinct(names)):
        return list(keys)
    return ["run.network" if key == "arch.blocks" else key for key in keys]


def _label(index: int) -> str:
    """Returns A, B, ..., Z, AA, AB, ..."""
    label = chr(ord("A") + index % 26)
    if index < 26:
        return label
    return _label(index // 26 - 1) + label


def _build_group(label: str, runs: list[TestedRun], keys: Sequence[str]) -> RunGroup:
    """Builds a group whose description has the settings at `keys`."""
    record = runs[0].record
    values = settings(record) | {"run.network": record.config.get("run.network")}
    words = []
    for key in keys[:MAX_LABEL_SETTINGS]:
        words.append(f"{key.removeprefix('run.')}={format_value(values.get(key))}")
    if len(keys) > MAX_LABEL_SETTINGS:
        words.append("...")
    test_accuracy = significance.estimate_mean([run.test_accuracy for run in runs])
    val_accuracy = None
    val_accuracies = [run.val_accuracy for run in runs if run.val_accuracy is not None]
    if len(val_accuracies) == len(runs):
        val_accuracy = significance.estimate_mean(val_accuracies)
    return RunGroup(label, " ".join(words), runs, test_accuracy, val_accuracy)


def _test_pairs(groups: Sequence[RunGroup]) -> TestedPairs:
    if len(groups) <= MAX_GROUPS_FOR_ALL_PAIRS:
        pairs = [_test_pair(first, second) for first, second in combinations(groups, 2)]
        return TestedPairs(_holm_correct(pairs), None, "")
    base = groups[0]
    reason = "the first given (not all runs have a validation accuracy)"
    means = [group.val_accuracy.mean for group in groups if group.val_accuracy]
    if len(means) == len(groups):
        base = groups[means.index(max(means))]
        reason = "the best by validation accuracy"
    pairs = [_test_pair(base, group) for group in groups if group is not base]
    return TestedPairs(_holm_correct(pairs), base.label, reason)


def _test_pair(first: RunGroup, second: RunGroup) -> GroupPair:
    refusal = _mcnemar_refusal(first, second)
    mcnemar = None if refusal else _test_images(first, second)
    first_values = [run.test_accuracy for run in first.runs]
    second_values = [run.test_accuracy for run in second.runs]
    if mcnemar and len(first.runs) == len(second.runs) == 1:
        test = "McNemar"
        result = TestResult(
            first_values[0] - second_values[0],
            significance.tango_interval(mcnemar.only_first, mcnemar.only_second, mcnemar.images),
            mcnemar.p,
        )
    elif first.seeds == second.seeds and _have_same_test_set([*first.runs, *second.runs]):
        test = "paired t"
        result = significance.paired_t_test(first_values, second_values)
    else:
        test = "Welch t"
        result = significance.welch_t_test(first_values, second_values)
    return GroupPair(
        first=first.label,
        second=second.label,
        test=None if result.p is None else test,
        difference=result.value,
        interval=result.interval,
        p=result.p,
        holm=None,
        mcnemar=mcnemar,
        mcnemar_refusal=refusal,
    )


def _mcnemar_refusal(first: RunGroup, second: RunGroup) -> str:
    """Returns why McNemar's test does not apply to the two groups; empty if it does."""
    runs = [*first.runs, *second.runs]
    if not _have_same_test_set(runs):
        return "not the same test images"
    if first.seeds != second.seeds and len(runs) > 2:
        return "not the same seeds"
    return ""


def _test_images(first: RunGroup, second: RunGroup) -> McNemar:
    """Counts an image once, whatever the number of seeds.

    An image counts for the group in which more of the seeds classify the image correctly.
    """
    first_hits = numpy.sum([run.correct for run in first.runs], axis=0)
    second_hits = numpy.sum([run.correct for run in second.runs], axis=0)
    only_first = int((first_hits > second_hits).sum())
    only_second = int((first_hits < second_hits).sum())
    p = significance.mcnemar(only_first, only_second)
    return McNemar(only_first, only_second, len(first_hits), p)


def _holm_correct(pairs: Sequence[GroupPair]) -> list[GroupPair]:
    """Adds Holm's p, separately for the tests of the means and for McNemar's tests."""
    mean_ps = significance.holm([pair.p for pair in pairs])
    image_ps = significance.holm([pair.mcnemar.p if pair.mcnemar else None for pair in pairs])
    corrected = []
    for pair, mean_p, image_p in zip(pairs, mean_ps, image_ps, strict=True):
        mcnemar = pair.mcnemar
        if mcnemar:
            mcnemar = mcnemar._replace(holm=image_p)
        corrected.append(pair._replace(holm=mean_p, mcnemar=mcnemar))
    return corrected
