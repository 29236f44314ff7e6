"""Renders a comparison: tables and a sentence for each pair of groups, or a dictionary for JSON."""

from collections.abc import Sequence
from itertools import chain
from math import isfinite
from typing import Any

from vggexp.compare.comparison import Comparison, GroupPair, RunGroup
from vggexp.compare.differences import distinct
from vggexp.compare.significance import ALPHA, Interval, MeanEstimate
from vggexp.formatting import HASH_CHARS, format_value, markdown_table, shorten

MAX_VALUE_CHARS = 60  # of a value in a table
HASH_KEYS = ("commit", "data")  # keys and parts whose values are hashes, as are those of sha256
NONE = "-"


def format_comparison(comparison: Comparison) -> str:
    groups = comparison.groups
    pairs = comparison.pairs
    blocks = [
        _runs_table(groups),
        _differences_table(comparison),
        _means_table(groups),
    ]
    if pairs:
        several_seeds = any(len(group.runs) > 1 for group in groups)
        blocks.append(_pairs_table(pairs))
        blocks.append(_images_table(pairs, several_seeds))
        blocks.append(sentences(comparison))
    else:
        runs = len(groups[0].runs)
        blocks.append(
            [f"One group of {runs} runs that differ only in the seed: there is nothing to test."]
        )
    blocks.append(comparison.notes)
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _runs_table(groups: Sequence[RunGroup]) -> list[str]:
    header = ["group", "seed", "val/accuracy", "test/accuracy", "run"]
    rows = []
    for group in groups:
        for run in group.runs:
            rows.append(
                [
                    group.label,
                    str(run.seed),
                    _format_accuracy(run.val_accuracy),
                    _format_accuracy(run.test_accuracy),
                    str(run.record.folder),
                ]
            )
    return markdown_table(header, rows)


def _differences_table(comparison: Comparison) -> list[str]:
    rows = []
    equal_parts = []
    for part, keys in comparison.differences.items():
        if not keys:
            equal_parts.append(part)
        for key, groups in keys.items():
            is_hash = key.endswith("sha256") or key in HASH_KEYS or part in HASH_KEYS
            for value in distinct(chain(*groups.values())):
                text = format_value(value)
                if is_hash:
                    text = text[:HASH_CHARS]
                rows.append(
                    [part, key, shorten(text, MAX_VALUE_CHARS), _groups_with(value, groups)]
                )
    lines = []
    if rows:
        lines += markdown_table(["differs", "key", "value", "in group"], rows)
    if equal_parts:
        lines.append(f"the same in all runs: {', '.join(equal_parts)}")
    return lines


def _groups_with(value: Any, groups: dict[str, list[Any]]) -> str:
    """Lists the groups with runs that have this value: `A (1 of 3 runs), B`."""
    labels = []
    for label, values in groups.items():
        count = values.count(value)
        if count == len(values):
            labels.append(label)
        elif count:
            labels.append(f"{label} ({count} of {len(values)} runs)")
    return ", ".join(labels)


def _means_table(groups: Sequence[RunGroup]) -> list[str]:
    header = [
        "group",
        "settings",
        "n",
        "val/accuracy",
        "test/accuracy",
        "deviation",
        "95 % interval",
    ]
    rows = []
    for group in groups:
        test = group.test_accuracy
        val = group.val_accuracy
        rows.append(
            [
                group.label,
                shorten(group.settings, MAX_VALUE_CHARS) or NONE,
                str(test.n),
                _format_accuracy(val.mean if val else None),
                _format_accuracy(test.mean),
                _format_accuracy(test.std),
                _format_interval(test.interval, sign=""),
            ]
        )
    legend = "deviation: of the sample; interval: Student's, of the mean; both of test/accuracy"
    return [*markdown_table(header, rows), legend]


def _pairs_table(pairs: Sequence[GroupPair]) -> list[str]:
    header = ["pair", "test", "difference", "95 % interval", "p"]
    rows = []
    for pair in pairs:
        rows.append(
            [
                f"{pair.first} - {pair.second}",
                pair.test or NONE,
                f"{pair.difference:+.4f}",
                _format_interval(pair.interval),
                _p_cell(pair.p),
            ]
        )
    if len(pairs) == 1:
        return markdown_table(header, rows)
    header.append("Holm's p")
    for row, pair in zip(rows, pairs, strict=True):
        row.append(_p_cell(pair.holm))
    legend = (
        f"Holm's p: corrected for being one of {len(pairs)} pairs; "
        "each interval is of 95 %, not corrected"
    )
    return [*markdown_table(header, rows), legend]


def _images_table(pairs: Sequence[GroupPair], several_seeds: bool) -> list[str]:
    """Counts the test images that only one group of a pair classifies correctly."""
    header = ["pair", "only the first right", "only the second", "of images", "McNemar's p"]
    rows = []
    for pair in pairs:
        mcnemar = pair.mcnemar
        if mcnemar is None:
            cells = [NONE, NONE, NONE, pair.mcnemar_refusal]
        else:
            cells = [
                str(mcnemar.only_first),
                str(mcnemar.only_second),
                str(mcnemar.images),
                _p_cell(mcnemar.p),
            ]
        rows.append([f"{pair.first} - {pair.second}", *cells])
    if len(pairs) > 1:
        header.append("Holm's p")
        for row, pair in zip(rows, pairs, strict=True):
            row.append(_p_cell(pair.mcnemar.holm) if pair.mcnemar else "")
    lines = markdown_table(header, rows)
    if several_seeds:
        lines.append(
            "of several seeds, an image counts for the group that gets it right with more of them"
        )
    return lines


def sentences(comparison: Comparison) -> list[str]:
    """Returns the conclusion for each pair."""
    groups = {group.label: group for group in comparison.groups}
    several_pairs = len(comparison.pairs) > 1
    return [
        _sentence(pair, groups[pair.first], groups[pair.second], several_pairs)
        for pair in comparison.pairs
    ]


def _sentence(pair: GroupPair, first: RunGroup, second: RunGroup, several_pairs: bool) -> str:
    first_name = _describe_group(first)
    second_name = _describe_group(second)
    seeds = _seed_counts(len(first.runs), len(second.runs))
    difference = f"difference {pair.difference:+.4f}"
    if pair.holm is None:
        return (
            f"{first_name} and {second_name} are not tested with {seeds}, "
            f"as {_untested_reason(first, second)}: {difference}."
        )
    verdict = "distinguishable" if pair.holm < ALPHA else "not distinguishable"
    p = _format_p(pair.holm)
    if several_pairs:
        p = f"Holm's {p}"
    numbers = f"{p}, {difference}, 95 % interval {_format_interval(pair.interval)}"
    if pair.test == "McNemar":
        return (
            f"The trained networks {first_name} and {second_name} are {verdict} on this test set "
            f"({numbers}); with one seed each, that says nothing of their settings."
        )
    return f"{first_name} is {verdict} from {second_name} with {seeds} ({pair.test}, {numbers})."


def _describe_group(group: RunGroup) -> str:
    if not group.settings:
        return group.label
    return f"{group.label} ({shorten(group.settings, MAX_VALUE_CHARS)})"


def _seed_counts(first: int, second: int) -> str:
    if first != second:
        return f"{first} and {second} seeds"
    return f"{first} seeds" if first > 1 else "one seed each"


def _untested_reason(first: RunGroup, second: RunGroup) -> str:
    single = [group.label for group in (first, second) if len(group.runs) == 1]
    if len(single) == 2:
        return f"{single[0]} and {single[1]} have no repeats"
    if single:
        return f"{single[0]} has no repeats"
    return "their values show no spread"


def _format_p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def _p_cell(p: float | None) -> str:
    if p is None:
        return NONE
    return _format_p(p).removeprefix("p ").removeprefix("= ")


def _format_accuracy(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _format_interval(interval: Interval | None, sign: str = "+") -> str:
    if interval is None:
        return NONE
    low, high = interval
    return f"{low + 0.0:{sign}.4f}..{high + 0.0:{sign}.4f}"  # + 0.0 turns -0.0 into 0.0


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Returns the object that `--json` prints.

    The deviation and interval of a mean and the interval and p of a pair may be null.
    """
    return {
        "groups": [_group_dict(group) for group in comparison.groups],
        "differences": {
            part: {
                key: {label: list(map(_json_value, values)) for label, values in groups.items()}
                for key, groups in keys.items()
            }
            for part, keys in comparison.differences.items()
        },
        "pairs": [
            {**_pair_dict(pair), "sentence": sentence}
            for pair, sentence in zip(comparison.pairs, sentences(comparison), strict=True)
        ],
        "base": comparison.base,
        "notes": comparison.notes,
    }


def _json_value(value: Any) -> Any:
    """Returns infinities and NaN, which JSON lacks, as they are typed."""
    if isinstance(value, float) and not isfinite(value):
        return format_value(value)
    return value


def _group_dict(group: RunGroup) -> dict[str, Any]:
    val_accuracy = None
    if group.val_accuracy is not None:
        val_accuracy = _mean_dict(group.val_accuracy)
    return {
        "group": group.label,
        "settings": group.settings,
        "seeds": group.seeds,
        "runs": [str(run.record.folder) for run in group.runs],
        "test/accuracy": _mean_dict(group.test_accuracy),
        "val/accuracy": val_accuracy,
    }


def _mean_dict(estimate: MeanEstimate) -> dict[str, Any]:
    return {
        "n": estimate.n,
        "mean": estimate.mean,
        "deviation": estimate.std,
        "interval": estimate.interval,
    }


def _pair_dict(pair: GroupPair) -> dict[str, Any]:
    mcnemar: dict[str, Any] = {"refused": pair.mcnemar_refusal}
    if pair.mcnemar:
        mcnemar = pair.mcnemar._asdict()
    return {
        "first": pair.first,
        "second": pair.second,
        "test": pair.test,
        "difference": pair.difference,
        "interval": pair.interval,
        "p": pair.p,
        "holm": pair.holm,
        "mcnemar": mcnemar,
        "distinguishable": None if pair.holm is None else pair.holm < ALPHA,
    }
