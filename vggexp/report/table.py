"""Runs side by side: the best first, with the settings in which they differ; and the means over their repeats."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vggexp.config.derived import layers
from vggexp.config.keys import unflatten
from vggexp.config.parse import ErrorList, parse_config
from vggexp.config.run_id import NON_IDENTITY_KEYS, network_name
from vggexp.config.schema import Config, ImageFolder
from vggexp.errors import VggexpError
from vggexp.formatting import csv_table, format_value, markdown_table, shorten
from vggexp.models import shapes
from vggexp.runs.records import RunRecord
from vggexp.runs.repeats import Row, mean_rows, rank_key

STATE_ORDER = (
    "finished",
    "running",
    "interrupted",
    "not started",
)  # failed runs, and states nobody knows, come last
MEASURED = ("val/accuracy", "val/loss", "test/accuracy", "epochs", "seconds", "parameters")
NETWORK_NAME_KEYS = (
    "arch.name",
    "arch.blocks",
    "arch.norm",
    "arch.width",
)  # what a network is named by
OWN_COLUMNS = {
    "run",
    "state",
    "network",
    "error",
    *MEASURED,
}  # columns that no key of a configuration may take
FORMATS = {
    "val/accuracy": ".4f",
    "val/loss": ".4f",
    "test/accuracy": ".4f",
    "seconds": ".1f",
    "parameters": ",",
    "train.init_sha256": ".8",
    **{
        f"{part}/accuracy {word}": ".4f"
        for part in ("val", "test")
        for word in ("mean", "deviation")
    },
}


class NetworkSummary(NamedTuple):
    network: str  # its name
    parameters: int | None


UNKNOWN = NetworkSummary("", None)


class Table(NamedTuple):
    """Of runs, best first; rows[i] belongs to runs[i] and has a value or None for each column."""

    runs: list[RunRecord]
    rows: list[Row]
    settings: list[str]  # columns of the configuration, those that differ
    score: str  # the column that ranks

    @property
    def columns(self) -> list[str]:
        """As the files have them."""
        error = ["error"] if any(row["error"] for row in self.rows) else []
        return [*self.settings, *MEASURED, "state", *error, "run"]

    def run_label(self, row: Row) -> str:
        """`network=vgg11 optimizer.lr=0.01`: what tells this run from the others; alone, its name."""
        return " ".join(f"{key}={format_value(row[key])}" for key in self.settings) or str(
            row["run"]
        )


def build_table(runs: Sequence[RunRecord]) -> Table:
    """Ranked by val/accuracy of the tested weights, or by test/accuracy where no run holds images out."""
    configs = _configurations(runs)
    settings = differing(configs)
    names = _names(runs)
    rows = [
        {
            "run": name,
            "state": run.state,
            **{key: config.get(key) for key in settings},
            **_measured(run, config),
        }
        for run, config, name in zip(runs, configs, names, strict=True)
    ]
    score = (
        "val/accuracy" if any(row["val/accuracy"] is not None for row in rows) else "test/accuracy"
    )
    ranked = sorted(zip(rows, runs, strict=True), key=lambda pair: _rank(pair[0], score))
    return Table([run for _, run in ranked], [row for row, _ in ranked], settings, score)


def _rank(row: Row, score: str) -> tuple[int, bool, float]:
    place = STATE_ORDER.index(row["state"]) if row["state"] in STATE_ORDER else len(STATE_ORDER)
    return place, *rank_key(row[score], score)


def _names(runs: Sequence[RunRecord]) -> list[str]:
    """Folder names; whole paths where several folders have one name."""
    times = Counter(run.name for run in runs)
    return [str(run.folder) if times[run.name] > 1 else run.name for run in runs]


def _configurations(runs: Sequence[RunRecord]) -> list[Row]:
    """The keys that make a run what it is, with the network's name and parameters before them."""
    networks: dict[
        str, NetworkSummary
    ] = {}  # many runs have the same, and to read a configuration takes a millisecond
    configs = []
    for run in runs:
        parts = format_value(
            {key: value for key, value in run.config.items() if key.startswith(("arch.", "data."))}
        )
        if networks.get(parts, UNKNOWN).parameters is None:
            networks[parts] = _network(run.config)
        kept = {
            key: value
            for key, value in run.config.items()
            if key not in OWN_COLUMNS and not key.startswith(NON_IDENTITY_KEYS)
        }
        configs.append({**networks[parts]._asdict(), **kept})
    return configs


def _network(config: Mapping[str, Any]) -> NetworkSummary:
    """Of a configuration of another version: its rows, or its name."""
    try:
        whole = parse_config(unflatten(config), ErrorList())
        if whole is not None:
            return _named(whole)
    except (VggexpError, ValueError, TypeError, AttributeError, RecursionError):
        pass
    return NetworkSummary(format_value(config.get("arch.blocks") or config.get("arch.name")), None)


def _named(config: Config) -> NetworkSummary:
    if (
        isinstance(config.data, ImageFolder) and config.data.classes is None
    ):  # the folder may be on another machine
        return NetworkSummary(
            network_name(replace(config, data=replace(config.data, classes=1))), None
        )
    return NetworkSummary(network_name(config), shapes.parameters(layers(config)))


def differing(configs: Sequence[Row]) -> list[str]:
    """The keys with more than one value, the network and the learning rate first and the seed last.

    A key of NAMED is left out where the network's name tells its value.
    """
    keys = dict.fromkeys(("network", "optimizer.lr")) | dict.fromkeys(
        key for config in configs for key in config
    )
    values = {
        key: [format_value(config.get(key)) for config in configs]
        for key in keys
        if key not in ("seed", "parameters")
    }
    values["seed"] = [format_value(config.get("seed")) for config in configs]
    networks = values["network"]
    return [
        key
        for key, many in values.items()
        if len(set(many)) > 1 and not (key in NETWORK_NAME_KEYS and _follows(many, networks))
    ]


def _follows(many: Sequence[str], names: Sequence[str]) -> bool:
    """Whether each name stands for one value, and there are several names."""
    return 1 < len(set(names)) == len(set(zip(names, many, strict=True)))


def _measured(run: RunRecord, config: Row) -> Row:
    """Of the tested weights; of a run that has not ended, its last epoch."""
    last = run.rows[-1] if run.rows else {}
    facts = {**last, **{key: value for key, value in run.result.items() if value is not None}}
    spent = [number(row.get("time/epoch_seconds")) or 0 for row in run.rows]
    measured = {
        name: number(facts.get(name)) for name in ("val/accuracy", "val/loss", "test/accuracy")
    }
    error = run.result.get("error")
    return {
        **measured,
        "epochs": number(facts.get("epoch")),
        "seconds": number(run.result.get("seconds", sum(spent) if spent else None)),
        "parameters": number(run.result.get("parameters", config["parameters"])),
        "error": str(error) if error else None,
    }


def number(value: Any) -> int | float | None:
    """None for what is no finite number: files of a run may hold anything."""
    try:
        return (
            value
            if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
            else None
        )
    except OverflowError:
        return None


def repeats(table: Table) -> list[Row]:
    """The means over the seeds, a row for each setting; none if no run has a repeat."""
    return mean_rows(table.rows, table.settings, ("val/accuracy", "test/accuracy"), table.score)


def raw(value: Any) -> str:
    """As it stands in the CSV file: nothing rounded."""
    return "" if value is None else format_value(value)


def cell(column: str, value: Any) -> str:
    """For readers: numbers rounded, `-` for what is not known."""
    if value is None:
        return "-"
    return f"{value:{FORMATS[column]}}" if column in FORMATS else format_value(value)


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    return csv_table(columns, [[raw(row[column]) for column in columns] for row in rows])


def as_markdown(columns: Sequence[str], rows: Sequence[Row], longest: int = 80) -> list[str]:
    """Texts lose what would break the table or be read as HTML, and what is longer than `longest`."""
    cells = [[cell(column, row[column]) for column in columns] for row in rows]
    head, *body = [
        [shorten(text, longest).replace("<", "\\<") for text in row] for row in [columns, *cells]
    ]
    return markdown_table(head, body)
