"""Tabulates runs of the same data: ranked, with the settings that differ, and means over seeds."""

import contextlib
import re
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from vggexp.config.run_id import identity
from vggexp.formatting import (
    HASH_CHARS,
    csv_table,
    format_metric,
    format_value,
    markdown_table,
    shorten,
    shorten_name,
)
from vggexp.report.data_sets import group_by_data
from vggexp.report.networks import NetworkSummary, summarize_networks
from vggexp.runs.directory import RESULT
from vggexp.runs.records import RunRecord
from vggexp.runs.repeats import Row, mean_rows, rank_key

STATE_ORDER = (  # order of the rows; failed runs and unknown states come last
    "finished",
    "paused",
    "running",
    "interrupted",
    "not started",
)
SCORES = ("val/accuracy", "val/loss", "test/accuracy")
MEASURED = (*SCORES, "epochs", "seconds", "parameters", "date")
MAX_LEADING_SETTINGS = 4  # more settings stand behind the scores, which a reader looks for first
NETWORK_NAME_KEYS = (  # keys that the name of a network expresses
    "arch.name",
    "arch.blocks",
    "arch.norm",
    "arch.width",
)
RESERVED_COLUMNS = {  # columns that no key of a configuration may take
    "data",
    "run",
    "state",
    "network",
    "error",
    *MEASURED,
}
HASH = re.compile("[0-9a-f]{8}")  # in the name of a run
METRIC = re.compile("(best/)?(train|val|test)/(accuracy|loss)")  # how a metric begins
FORMATS = {"seconds": ".1f", "parameters": ","}  # format specification of other rounded columns
MAX_CELL_CHARS = 80  # of a Markdown cell


class Table(NamedTuple):
    """Runs, best first. rows[i] belongs to runs[i] and has a value or None for each column."""

    data: str  # the name of the data set
    runs: list[RunRecord]
    rows: list[Row]
    labels: list[str]  # short names, unique in the table
    networks: list[str]  # names of the networks; equal networks have the name of the first
    settings: list[str]  # the columns of the configuration: the keys with more than one value
    score: str  # the column that ranks
    val_images: list[int]  # the different numbers of validation images, as far as they are known

    @property
    def columns(self) -> list[str]:
        """Returns the columns of the files, in order."""
        return _columns(self.settings, self.rows)

    @property
    def page_columns(self) -> list[str]:
        """Returns the columns of the page: a narrow screen shows the run and its score."""
        columns = sorted(SCORES, key=lambda column: column != self.score)
        columns.remove("val/loss")
        rest = [column for column in self.columns if column not in ("run", *columns)]
        return ["run", *columns, *rest]

    def first(self, count: int | None) -> "Table":
        """Returns the table of the best runs; of all runs for None."""
        return self._replace(
            runs=self.runs[:count],
            rows=self.rows[:count],
            labels=self.labels[:count],
            networks=self.networks[:count],
        )


def _columns(settings: Sequence[str], rows: Sequence[Row]) -> list[str]:
    columns = [*settings, *MEASURED]
    if len(settings) > MAX_LEADING_SETTINGS:
        columns = [*SCORES, *settings, *MEASURED[len(SCORES) :]]
    columns.append("state")
    if any(row["error"] for row in rows):
        columns.append("error")
    return [*columns, "run"]


def build_table(runs: Sequence[RunRecord], data: str = "") -> Table:
    """Ranks runs of the same data by the val/accuracy of the tested weights.

    If no run has validation images, the runs are ranked by test/accuracy.
    """
    networks = summarize_networks(runs)
    configs = [_identity_config(run, network) for run, network in zip(runs, networks, strict=True)]
    settings = varying_keys(configs)
    names = _unique_names(runs)
    rows = []
    for run, name, network, config in zip(runs, names, networks, configs, strict=True):
        rows.append(
            {
                "data": data,
                "run": name,
                "state": run.state,
                "network": network.name,
                **{key: config.get(key) for key in settings},
                **_measured(run, network),
            }
        )
    score = "test/accuracy"
    if any(row["val/accuracy"] is not None for row in rows):
        score = "val/accuracy"
    order = sorted(range(len(rows)), key=lambda index: _rank(rows[index], score))
    labels = short_names(names)
    return Table(
        data=data,
        runs=[runs[index] for index in order],
        rows=[rows[index] for index in order],
        labels=[labels[index] for index in order],
        networks=_shared_names([configs[index] for index in order]),
        settings=settings,
        score=score,
        val_images=sorted({network.val_images for network in networks if network.val_images}),
    )


def _shared_names(configs: Sequence[Row]) -> list[str]:
    """Returns the name of each configuration's network, however the network was typed."""
    names: dict[str, str] = {}
    shared = []
    for config in configs:
        arch = format_value({key: config[key] for key in config if key.startswith("arch.")})
        shared.append(names.setdefault(arch, config["network"]))
    return shared


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


def short_names(names: Sequence[str]) -> list[str]:
    """Returns the names without the parts that all of them share, and without hashes if possible.

    Of `vgg11-mnist-32px-lr0.1-0a1b2c3d` and `vgg16-mnist-32px-lr0.1-4e5f6a7b`, vgg11 and vgg16 are
    left. A name without a hash was given by run.name, and stays as it is.
    """
    parts = {}
    for name in names:
        words = re.split(r"(?<!\de)-", name)  # no part ends inside 1e-05
        if any(map(HASH.fullmatch, words)):
            parts[name] = words
    shared: set[str] = set()
    if len(parts) > 1:
        shared = set.intersection(*map(set, parts.values()))
    with_hash = {}
    without_hash = {}
    for name, words in parts.items():
        own = [word for word in words if word not in shared]
        readable = [word for word in own if not HASH.fullmatch(word)]
        with_hash[name] = "-".join(own if readable else [words[0], *own])
        without_hash[name] = "-".join(readable)
    for short in (without_hash, with_hash):
        labels = [short.get(name, name) for name in names]
        if all(labels) and len(set(labels)) == len(labels):
            return labels
    return list(names)


def _identity_config(run: RunRecord, network: NetworkSummary) -> Row:
    """Returns the keys that define the run, and its network."""
    config = identity(run.config)
    for key in RESERVED_COLUMNS & config.keys():
        del config[key]
    return {"network": network.name, **config}


def varying_keys(configs: Sequence[Row]) -> list[str]:
    """Returns the keys with more than one value: network and learning rate first, seed last.

    A key of NETWORK_NAME_KEYS is left out if the network's name determines its value.
    """
    keys = dict.fromkeys(["network", "optimizer.lr"])
    for config in configs:
        keys.update(dict.fromkeys(config))
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


def run_metrics(run: RunRecord) -> Row:
    """Returns the metrics of the tested weights; those of an unfinished run's last epoch."""
    values = dict(run.rows[-1]) if run.rows else {}
    for key, value in run.result.items():
        if value is not None:
            values[key] = value
    return values


def _measured(run: RunRecord, network: NetworkSummary) -> Row:
    """Returns the measured columns and the error."""
    values = run_metrics(run)
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
        "parameters": run.result.get("parameters", network.parameters),
        "date": _date(run),
        "error": str(error) if error else None,
    }


def _date(run: RunRecord) -> str | None:
    """Returns when result.json was last written, in local time: `2026-11-29 07:16`."""
    with contextlib.suppress(OSError, ValueError, OverflowError):
        changed = (run.folder / RESULT).stat().st_mtime
        return datetime.fromtimestamp(changed).isoformat(" ", "minutes")
    return None


def repeat_rows(table: Table) -> list[Row]:
    """Returns a row of means over the seeds for each setting; empty if no run has a repeat.

    A network that was named in several ways is one setting, under the name of its best run.
    """
    pairs = zip(table.rows, table.networks, strict=True)
    rows = [{**row, "network": network} for row, network in pairs]
    return mean_rows(rows, table.settings, ("val/accuracy", "test/accuracy"), table.score)


class Section(NamedTuple):
    """What a report shows of one data set."""

    table: Table  # of all runs
    listed: Table  # of the best runs, if not all are asked for
    repeats: list[Row]  # means over the seeds of all runs, the best first


def build_sections(runs: Sequence[RunRecord], best: int | None = None) -> list[Section]:
    """Returns a section for each data set.

    Args:
        best: Number of runs and of means to list; None for all.
    """
    sections = []
    for data_set in group_by_data(runs):
        table = build_table(data_set.runs, data_set.name)
        sections.append(Section(table, table.first(best), repeat_rows(table)[:best]))
    return sections


def csv_cell(value: Any) -> str:
    """Returns the value without rounding; empty for None."""
    return "" if value is None else format_value(value)


def display_cell(column: str, value: Any) -> str:
    """Returns the value rounded for readers; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, int | float):
        if METRIC.match(column):
            return format_metric(value)
        if column in FORMATS:
            return format(value, FORMATS[column])
    text = format_value(value)
    return text[:HASH_CHARS] if column.endswith("sha256") else text


def to_csv(tables: Sequence[Table]) -> str:
    """Returns the rows of all tables. With several tables, the first column is the data set."""
    settings = list(dict.fromkeys(key for table in tables for key in table.settings))
    rows = []
    for table in tables:
        for run, row in zip(table.runs, table.rows, strict=True):
            config = identity(run.config)
            rows.append({key: config.get(key) for key in settings} | row)
    columns = _columns(settings, rows)
    if len(tables) > 1:
        columns.insert(0, "data")
    return csv_table(columns, [[csv_cell(row[column]) for column in columns] for row in rows])


def to_markdown(columns: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Returns the lines of a table.

    Cells are shortened to MAX_CELL_CHARS, without what would break the table or be read as HTML.
    """
    cells = []
    for row in rows:
        texts = {column: display_cell(column, row[column]) for column in columns}
        if "run" in texts:
            texts["run"] = shorten_name(texts["run"], MAX_CELL_CHARS)
        cells.append([markdown_text(text) for text in texts.values()])
    return markdown_table([markdown_text(column) for column in columns], cells)


def markdown_text(text: str) -> str:
    return shorten(text, MAX_CELL_CHARS).replace("<", "\\<")
