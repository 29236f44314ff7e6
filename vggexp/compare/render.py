"""A comparison told: a sentence for each pair, tables for a terminal, and plain data for JSON."""

from collections.abc import Iterator, Sequence
from itertools import chain
from math import isfinite
from typing import Any

from vggexp.compare.comparison import Comparison, GroupPair, RunGroup, distinct
from vggexp.compare.significance import ALPHA, Interval, MeanEstimate
from vggexp.formatting import format_value, markdown_table, printable, shorten

LONGEST = 60  # characters of a value in a table
HASHES = ("commit", "data")  # told by their first characters
NONE = "-"


def format_comparison(comparison: Comparison) -> str:
    groups = comparison.groups
    notes = comparison.notes
    blocks = [
        markdown_table(
            ["group", "seed", "val/accuracy", "test/accuracy", "run"],
            list(chain(*map(_runs, groups))),
        ),
        _differences(comparison),
        [
            *_means(groups),
            "deviation: of the sample; interval: Student's, of the mean; both of test/accuracy",
        ],
        _pairs(comparison.pairs),
        _images(comparison.pairs, several=any(len(group.runs) > 1 for group in groups)),
        [_nothing(groups)] if not comparison.pairs else [],
        sentences(comparison),
        notes,
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _runs(group: RunGroup) -> Iterator[list[str]]:
    for run in group.runs:
        yield [
            group.label,
            str(run.seed),
            _number(run.val),
            _number(run.test),
            printable(str(run.run.folder)),
        ]


def _means(groups: Sequence[RunGroup]) -> list[str]:
    head = ["group", "settings", "n", "val/accuracy", "test/accuracy", "deviation", "95 % interval"]
    return markdown_table(
        head,
        [
            [group.label, shorten(group.settings, LONGEST) or NONE, *_mean(group)]
            for group in groups
        ],
    )


def _mean(group: RunGroup) -> list[str]:
    test = group.test
    val = _number(group.val.mean if group.val else None)
    return [
        str(test.n),
        val,
        _number(test.mean),
        _number(test.deviation),
        _interval(test.interval, ""),
    ]


def _differences(comparison: Comparison) -> list[str]:
    rows = []
    for part, keys in comparison.differences.items():
        for key, groups in keys.items():
            short = key in HASHES or part in HASHES
            for value in distinct(chain(*groups.values())):
                who = [
                    _share(label, values.count(value), len(values))
                    for label, values in groups.items()
                ]
                shown_ = shorten(
                    format_value(value)[:12] if short else format_value(value), LONGEST
                )
                rows.append([part, key, shown_, ", ".join(filter(None, who))])
    same = [part for part, keys in comparison.differences.items() if not keys]
    end = [f"the same in all runs: {', '.join(same)}"] if same else []
    return [*(markdown_table(["differs", "key", "value", "in group"], rows) if rows else []), *end]


def _share(label: str, count: int, runs: int) -> str:
    """`A`, `A (1 of 3 runs)` or nothing."""
    if count in (0, runs):
        return label if count else ""
    return f"{label} ({count} of {runs} runs)"


def _pairs(pairs: Sequence[GroupPair]) -> list[str]:
    head = ["pair", "test", "difference", "95 % interval", "p"] + ["Holm's p"] * (len(pairs) > 1)
    rows = []
    for pair in pairs:
        cells = [
            pair.test or NONE,
            f"{pair.difference:+.4f}",
            _interval(pair.interval),
            _p(pair.p),
            _p(pair.holm),
        ]
        rows.append([f"{pair.first} - {pair.second}", *cells][: len(head)])
    end = [
        f"Holm's p: corrected for being one of {len(pairs)} pairs; each interval is of 95 %, not corrected"
    ]
    return [*markdown_table(head, rows), *end[: len(pairs) - 1]] if rows else []


def _images(pairs: Sequence[GroupPair], several: bool) -> list[str]:
    """The test images by which of the two gets them right. several: whether groups have several seeds."""
    head = ["pair", "only the first right", "only the second", "of images", "McNemar's p"]
    head += ["Holm's p"] * (len(pairs) > 1)
    rows = []
    for pair in pairs:
        of = pair.mcnemar
        cells = (
            [NONE] * 3 + [of, ""]
            if isinstance(of, str)
            else [*map(str, of[:3]), _p(of.p), _p(of.holm)]
        )
        rows.append([f"{pair.first} - {pair.second}", *cells][: len(head)])
    end = (
        ["of several seeds, an image counts for the group that gets it right with more of them"]
        if several
        else []
    )
    return [*markdown_table(head, rows), *end] if rows else []


def _nothing(groups: Sequence[RunGroup]) -> str:
    return f"One group of {len(groups[0].runs)} runs that differ only in the seed: there is nothing to test."


def sentences(comparison: Comparison) -> list[str]:
    groups = {group.label: group for group in comparison.groups}
    pairs = comparison.pairs
    return [_sentence(pair, groups[pair.first], groups[pair.second], len(pairs)) for pair in pairs]


def _sentence(pair: GroupPair, first: RunGroup, second: RunGroup, pairs: int) -> str:
    names = (_name(first), _name(second))
    seeds = _seeds(first, second)
    value = f"difference {pair.difference:+.4f}"
    if pair.holm is None:
        return f"{names[0]} and {names[1]} are not tested with {seeds}, as {_untested(first, second)}: {value}."
    verdict = "distinguishable" if pair.holm < ALPHA else "not distinguishable"
    whose = "Holm's " if pairs > 1 else ""
    numbers = f"{whose}{_equals(pair.holm)}, {value}, 95 % interval {_interval(pair.interval)}"
    if pair.test == "McNemar":
        networks = f"The trained networks {names[0]} and {names[1]} are {verdict} on this test set ({numbers})"
        return f"{networks}; with one seed each, that says nothing of their settings."
    return f"{names[0]} is {verdict} from {names[1]} with {seeds} ({pair.test}, {numbers})."


def _name(group: RunGroup) -> str:
    return f"{group.label} ({shorten(group.settings, LONGEST)})" if group.settings else group.label


def _seeds(first: RunGroup, second: RunGroup) -> str:
    one = len(first.runs)
    other = len(second.runs)
    if one != other:
        return f"{one} and {other} seeds"
    return f"{one} seeds" if one > 1 else "one seed each"


def _untested(first: RunGroup, second: RunGroup) -> str:
    if alone := [group.label for group in (first, second) if len(group.runs) == 1]:
        return f"{' and '.join(alone)} {'have' if len(alone) > 1 else 'has'} no repeats"
    return "their values show no spread"


def _equals(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.4f}"


def _p(p: float | None) -> str:
    return NONE if p is None else _equals(p).removeprefix("p ").removeprefix("= ")


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _interval(interval: Interval | None, sign: str = "+") -> str:
    return NONE if interval is None else "..".join(f"{end + 0.0:{sign}.4f}" for end in interval)


def data(comparison: Comparison) -> dict[str, Any]:
    """For JSON. A mean's deviation and interval, a pair's interval and p are null where they cannot be told."""
    return {
        "groups": [_group(group) for group in comparison.groups],
        "differences": {
            part: {
                key: {label: list(map(_json, each)) for label, each in groups.items()}
                for key, groups in keys.items()
            }
            for part, keys in comparison.differences.items()
        },
        "pairs": [_pair(*of) for of in zip(comparison.pairs, sentences(comparison), strict=True)],
        "base": comparison.base,
        "notes": comparison.notes,
    }


def _json(value: Any) -> Any:
    """The infinities and NaN, for which JSON has no words, as they are typed."""
    return format_value(value) if isinstance(value, float) and not isfinite(value) else value


def _group(group: RunGroup) -> dict[str, Any]:
    def plain(mean: MeanEstimate | None) -> dict[str, Any] | None:
        return mean and mean._asdict()

    runs = [str(run.run.folder) for run in group.runs]
    scores = {"test/accuracy": plain(group.test), "val/accuracy": plain(group.val)}
    return {
        "group": group.label,
        "settings": group.settings,
        "seeds": group.seeds,
        "runs": runs,
        **scores,
    }


def _pair(pair: GroupPair, sentence: str) -> dict[str, Any]:
    of = pair.mcnemar
    mcnemar = {"refused": of} if isinstance(of, str) else of._asdict()
    apart = None if pair.holm is None else pair.holm < ALPHA
    return {**pair._asdict(), "mcnemar": mcnemar, "distinguishable": apart, "sentence": sentence}
