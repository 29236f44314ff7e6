"""Tabulates runs: ranked, with the settings that differ, and with the means over seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vggexp.config.derived import layers
from vggexp.config.keys import unflatten
from vggexp.config.parse import parse_config
from vggexp.config.run_id import NON_IDENTITY_KEYS, network_name
from vggexp.config.schema import Config, ImageFolder
from vggexp.errors import VggexpError
from vggexp.formatting import HASH_CHARS, csv_table, format_value, markdown_table, shorten
from vggexp.models import shapes
from vggexp.runs.records import RunRecord
from vggexp.runs.repeats import Row, mean_rows, rank_key

STATE_ORDER = (  # order of the rows; failed runs and unknown states come last
    "finished",
    "paused",
    "running",
    "interrupted",
    "not started",
)
MEASURED = ("val/accuracy", "val/loss", "test/accuracy", "epochs", "seconds", "parameters")
NETWORK_NAME_KEYS = (  # keys that the name of a network expresses
    "arch.name",
    "arch.blocks",
    "arch.norm",
    "arch.width",
)
RESERVED_COLUMNS = {  # columns that no key of a configuration may take
    "run",
    "state",
    "network",
    "error",
    *MEASURED,
}
FORMATS = {  # format specification of each rounded column
    "val/accuracy": ".4f",
    "val/loss": ".4f",
    "test/accuracy": ".4f",
    "seconds": ".1f",
    "parameters": ",",
    "val/accuracy mean": ".4f",
    "val/accuracy deviation": ".4f",
    "test/accuracy mean": ".4f",
    "test/accuracy deviation": ".4f",
}
MAX_CELL_CHARS = 80  # of a Markdown cell


class NetworkSummary(NamedTuple):
    name: str
    parameters: int | None


class Table(NamedTuple):
    """Runs, best first. rows[i] belongs to runs[i] and has a value or None for each column."""

    runs: list[RunRecord]
    rows: list[Row]
    settings: list[str]  # the columns of the configuration: the keys with more than one value
    score: str  # the column that ranks

    @property
    def columns(self) -> list[str]:
        """Returns the columns of the files, in order."""
        columns = [*self.settings, *MEASURED, "state"]
        if any(row["error"] for row in self.rows):
            columns.append("error")
        return [*columns, "run"]

    def run_label(self, row: Row) -> str:
        """Returns what distinguishes this run: `network=vgg11 optimizer.lr=0.01`.

        The label of a single run is its name.
        """
        words = [f"{key}={format_value(row[key])}" for key in self.settings]
        return " ".join(words) or str(row["run"])


def build_table(runs: Sequence[RunRecord]) -> Table:
    """Ranks the runs by the val/accuracy of the tested weights.

    If no run has validation images, the runs are ranked by test/accuracy.
    """
    configs = _identity_configs(runs)
    settings = varying_keys(configs)
    rows = []
    for run, name, config in zip(runs, _unique_names(runs), configs, strict=True):
        rows.append(
            {
                "run": name,
                "state": run.state,
                **{key: config.get(key) for key in settings},
                **_metrics(run, config["parameters"]),
            }
        )
    score = "test/accuracy"
    if any(row["val/accuracy"] is not None for row in rows):
        score = "val/accuracy"
    order = sorted(range(len(rows)), key=lambda index: _rank(rows[index], score))
    return Table(
        runs=[runs[index] for index in order],
        rows=[rows[index] for index in order],
        settings=settings,
        score=score,
    )


def _rank(row: Row, score: str) -> tuple[int, int, bool, float]:
    """Returns a key for `sorted`; a run that is paused at a later epoch comes first."""
    state_rank = len(STATE_ORDER)
    if row["state"] in STATE_ORDER:
        state_rank = STATE_ORDER.index(row["state"])
    epochs = row["epochs"] or 0
    paused_rank = -epochs if row["state"] == "paused" else 0
    return state_rank, paused_rank, *rank_key(row[score], score)


def _unique_names(runs: Sequence[RunRecord]) -> list[str]:
    """Returns folder names, or whole paths if several folders have the same name."""
    counts = Counter(run.name for run in runs)
    return [str(run.folder) if counts[run.name] > 1 else run.name for run in runs]


def _identity_configs(runs: Sequence[RunRecord]) -> list[Row]:
    """Returns for each run `network`, `parameters`, and the keys that define the run."""
    # Many runs have the same network, and parsing a configuration takes a millisecond.
    networks: dict[str, NetworkSummary] = {}
    configs = []
    for run in runs:
        network_keys = {}
        identity = {}
        for key, value in run.config.items():
            if key.startswith(("arch.", "data.")):
                network_keys[key] = value
            if key not in RESERVED_COLUMNS and not key.startswith(NON_IDENTITY_KEYS):
                identity[key] = value
        cache_key = format_value(network_keys)
        network = networks.get(cache_key)
        if network is None or network.parameters is None:
            network = networks[cache_key] = _summarize_network(run.config)
        configs.append({"network": network.name, "parameters": network.parameters, **identity})
    return configs


def _summarize_network(flat_config: Mapping[str, Any]) -> NetworkSummary:
    """Returns the name and the parameters of the network.

    A configuration of another version may fail to parse. The name is then `arch.blocks` or
    `arch.name` as typed.
    """
    try:
        config, _ = parse_config(unflatten(flat_config))
        if config is not None:
            return _summarize_parsed_network(config)
    except (VggexpError, ValueError, TypeError, AttributeError, LookupError, OverflowError):
        pass
    name = format_value(flat_config.get("arch.blocks") or flat_config.get("arch.name"))
    return NetworkSummary(name, None)


def _summarize_parsed_network(config: Config) -> NetworkSummary:
    data = config.data
    if isinstance(data, ImageFolder) and data.classes is None:
        # The number of classes is unknown here: the folder may be on another machine. The name
        # does not depend on that number.
        config = replace(config, data=replace(data, classes=1))
        return NetworkSummary(network_name(config), None)
    return NetworkSummary(network_name(config), shapes.parameters(layers(config)))


def varying_keys(configs: Sequence[Row]) -> list[str]:
    """Returns the keys with more than one value: network and learning rate first, seed last.

    A key of NETWORK_NAME_KEYS is left out if the network's name determines its value.
    """
    keys = dict.fromkeys(["network", "optimizer.lr"])
    for config in configs:
        keys.update(dict.fromkeys(config))
    keys.pop("parameters", None)
    keys.pop("seed", None)
    networks = [config["network"] for config in configs]
    varying = []
    for key in [*keys, "seed"]:
        values = [format_value(config.get(key)) for config in configs]
        if len(set(values)) <= 1:
            continue
        if key not in NETWORK_NAME_KEYS or not _determines(networks, values):
            varying.append(key)
    return varying


def _determines(names: Sequence[str], values: Sequence[str]) -> bool:
    """Returns whether there are several names and each belongs to one value."""
    different_names = len(set(names))
    different_pairs = len(set(zip(names, values, strict=True)))
    return different_names > 1 and different_names == different_pairs


def _metrics(run: RunRecord, parameters: int | None) -> Row:
    """Returns the measured columns.

    Metrics belong to the tested weights. Those of an unfinished run belong to its last epoch.
    """
    values = dict(run.rows[-1]) if run.rows else {}
    for key, value in run.result.items():
        if value is not None:
            values[key] = value
    seconds = None
    if run.rows:
        seconds = sum(row.get("time/epoch_seconds") or 0 for row in run.rows)
    error = run.result.get("error")
    return {
        "val/accuracy": values.get("val/accuracy"),
        "val/loss": values.get("val/loss"),
        "test/accuracy": values.get("test/accuracy"),
        "epochs": values.get("epoch"),
        "seconds": run.result.get("seconds", seconds),
        "parameters": run.result.get("parameters", parameters),
        "error": str(error) if error else None,
    }


def repeat_rows(table: Table) -> list[Row]:
    """Returns a row of means over the seeds for each setting; empty if no run has a repeat."""
    return mean_rows(table.rows, table.settings, ("val/accuracy", "test/accuracy"), table.score)


def csv_cell(value: Any) -> str:
    """Returns the value without rounding; empty for None."""
    return "" if value is None else format_value(value)


def display_cell(column: str, value: Any) -> str:
    """Returns the value rounded for readers; `-` for None."""
    if value is None:
        return "-"
    if column in FORMATS:
        return format(value, FORMATS[column])
    text = format_value(value)
    return text[:HASH_CHARS] if column.endswith("sha256") else text


def to_csv(columns: Sequence[str], rows: Sequence[Row]) -> str:
    return csv_table(columns, [[csv_cell(row[column]) for column in columns] for row in rows])


def to_markdown(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Returns the lines of a table.

    Cells are shortened to MAX_CELL_CHARS, without what would break the table or be read as HTML.
    """
    cells = [
        [_markdown_cell(display_cell(column, row[column])) for column in columns] for row in rows
    ]
    return markdown_table([_markdown_cell(column) for column in columns], cells)


def _markdown_cell(text: str) -> str:
    return shorten(text, MAX_CELL_CHARS).replace("<", "\\<")
