"""The jobs of a sweep before it starts: what each costs, which are done, and how long the rest may take."""

import socket
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from vggexp.config.derived import layers, training_macs
from vggexp.config.parse import ErrorList, parse_config
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config
from vggexp.errors import VggexpError
from vggexp.formatting import duration, markdown_table
from vggexp.models.shapes import macs, parameters
from vggexp.runs import records
from vggexp.runs.directory import read_config, read_result
from vggexp.sweep.results import parse_job, swept_keys

SIMILAR_MACS_FACTOR = 8  # a network of so many times another's multiply-adds an image takes another time for each of them


class RunCost(NamedTuple):
    """Of a finished run."""

    network: str
    device: str
    macs: int  # an image
    seconds: float  # for 10^9 multiply-adds of training


def dry_run_table(jobs: Sequence[tuple[Sequence[str], Config]]) -> list[str]:
    """Lines for people. jobs: overrides and configuration of each. Reads run directories, writes nothing."""
    overrides, configs = zip(*jobs, strict=True)
    costs = finished_costs(Path(configs[0].run.root))
    states = [state(config) for config in configs]
    seconds = [expected_seconds(config, costs) for config in configs]
    keys = swept_keys(overrides)
    columns = [*keys, "parameters", "GMAC an image", "state", "expected", "run"]
    cells = [
        [
            *(parse_job(words).get(key, "-") for key in keys),
            *_facts(config),
            stands,
            _told(expected, stands),
            records.run_dir(config).name,
        ]
        for words, config, stands, expected in zip(overrides, configs, states, seconds, strict=True)
    ]
    left = [
        expected for expected, stands in zip(seconds, states, strict=True) if stands != "finished"
    ]
    known = [expected for expected in left if expected is not None]
    told = f"{len(jobs)} jobs: {len(jobs) - len(left)} finished, {len(left)} to run"
    if left and len(known) == len(left):
        told += f", about {duration(sum(known))} one after another (from {len(costs)} finished runs on this host)"
    elif left:
        told += "; no finished run of such a size on this host tells how long they take"
    return [*markdown_table(columns, cells), told]


def state(config: Config) -> str:
    """Raises CheckpointError where the folder is another configuration's."""
    if config.resume == "never":
        return "not started"
    records.finished_result(config)
    folder = records.run_dir(config)
    return records.run_state(folder, read_result(folder))


def _facts(config: Config) -> tuple[str, str]:
    table = layers(config)
    return f"{parameters(table):,}", f"{macs(table) / 1e9:.3f}"


def _told(seconds: float | None, state: str) -> str:
    return "-" if seconds is None or state == "finished" else duration(seconds)


def finished_costs(root: Path) -> list[RunCost]:
    """What the finished runs of this host have cost. A folder that cannot be read tells nothing."""
    costs: list[RunCost] = []
    for folder in records.find_runs([root]):
        try:
            run = records.read_run(folder)
            config = parse_config(read_config(folder), ErrorList())
        except VggexpError:
            continue
        here = run.environment.get("host") == socket.gethostname()
        if config is not None and here and run.state == "finished" and "seconds" in run.result:
            billions = training_macs(config) / 1e9
            facts = network_name(config), config.device.name, macs(layers(config))
            costs.append(RunCost(*facts, run.result["seconds"] / billions))
    return costs


def expected_seconds(config: Config, costs: Sequence[RunCost]) -> float | None:
    """By runs of the same network on the same device, else of any of about its size on it; None without such runs."""
    own = macs(layers(config))
    alike = [
        cost
        for cost in costs
        if cost.device == config.device.name
        and own / SIMILAR_MACS_FACTOR <= cost.macs <= own * SIMILAR_MACS_FACTOR
    ]
    same = [cost for cost in alike if cost.network == network_name(config)]
    rates = [cost.seconds for cost in same or alike]
    return median(rates) * training_macs(config) / 1e9 if rates else None
