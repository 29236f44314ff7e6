"""Selects runs by `--where`, an expression with the grammar of `sweep.where`."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vggexp.config.parse import did_you_mean
from vggexp.errors import ConfigError, DataError
from vggexp.formatting import plural
from vggexp.report.networks import NetworkSummary, summarize_networks
from vggexp.report.table import run_metrics
from vggexp.runs.records import RunRecord
from vggexp.sweep.filter import CONSTANTS, NullValueError, evaluate_filter, names, parse_filter

EXAMPLE = "'val/accuracy > 0.9 and parameters < 30e6'"
ALLOWED = "metrics, state, network, run, parameters and keys may stand, and text in quotes"


class Selection(NamedTuple):
    """What the command selects."""

    folders: Sequence[Path]  # the folders given to the command
    found: int  # runs in the folders
    where: str | None = None
    best: int | None = None  # runs of each data set that are listed


def select_runs(runs: Sequence[RunRecord], where: str) -> list[RunRecord]:
    """Returns the runs that satisfy an expression over metrics, numbers of `plan` and keys.

    An order (`<`, `>`) or a calculation with a value that a run does not have, such as the accuracy
    of a run without an epoch, selects nothing, also after `not`.

    Raises:
        ConfigError: The expression is wrong, or has a name that no run has.
        DataError: No run satisfies the expression.
    """
    source = f"--where {where}"
    expression = parse_filter(where, source, EXAMPLE)
    networks = summarize_networks(runs)
    values = [_run_values(run, network) for run, network in zip(runs, networks, strict=True)]
    known = {name for own in values for name in own}
    for name in names(expression):
        if name not in known:
            nearest = did_you_mean(name, sorted(known))
            raise ConfigError(f"{source}: {name}: unknown; {nearest}{ALLOWED}")
    missing = dict.fromkeys(known)
    selected = []
    for run, own in zip(runs, values, strict=True):
        if _satisfies(expression, missing | own, source):
            selected.append(run)
    if not selected:
        raise DataError(f"{source}: holds for none of {plural(len(runs), 'run')}")
    return selected


def _run_values(run: RunRecord, network: NetworkSummary) -> dict[str, Any]:
    """Returns the names of an expression with their values."""
    numbers = network._asdict() | run_metrics(run)
    del numbers["name"]
    places = {"state": run.state, "network": network.name, "run": run.name}
    return {**CONSTANTS, **run.config, **numbers, **places}


def _satisfies(expression: ast.expr, values: Mapping[str, Any], source: str) -> bool:
    try:
        return evaluate_filter(expression, values, source, ALLOWED)
    except NullValueError:
        if any(name != "null" and values[name] is None for name in names(expression)):
            return False
        raise
