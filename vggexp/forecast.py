"""The jobs of a sweep before it starts: what each costs, which are done, and how long the rest may take."""

import socket
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from vggexp import runs
from vggexp.config.identity import network_name
from vggexp.config.read import Problems, read
from vggexp.config.rules import layers, training_macs
from vggexp.config.schema import Config
from vggexp.errors import VggexpError
from vggexp.rundir import config_of, result_of
from vggexp.shapes import macs, parameters
from vggexp.sinks.console import duration
from vggexp.table import job_values, swept
from vggexp.tabular import markdown

ALIKE = 8  # a network of so many times another's multiply-adds an image takes another time for each of them


class Cost(NamedTuple):
    """Of a finished run."""

    network: str
    device: str
    macs: int  # an image
    seconds: float  # for 10^9 multiply-adds of training


def forecast(jobs: Sequence[tuple[Sequence[str], Config]]) -> list[str]:
    """Lines for people. jobs: overrides and configuration of each. Reads run directories, writes nothing."""
    overrides, configs = zip(*jobs, strict=True)
    costs = finished_costs(Path(configs[0].run.root))
    states, seconds = [state(config) for config in configs], [expected_seconds(config, costs) for config in configs]
    keys = swept(overrides)
    columns = [*keys, "parameters", "GMAC an image", "state", "expected", "run"]
    cells = [
        [*(job_values(words).get(key, "-") for key in keys), *_facts(config), stands, _told(expected, stands),
         runs.folder_of(config).name]
        for words, config, stands, expected in zip(overrides, configs, states, seconds, strict=True)
    ]  # fmt: skip
    left = [expected for expected, stands in zip(seconds, states, strict=True) if stands != "finished"]
    known = [expected for expected in left if expected is not None]
    told = f"{len(jobs)} jobs: {len(jobs) - len(left)} finished, {len(left)} to run"
    if left and len(known) == len(left):
        told += f", about {duration(sum(known))} one after another (from {len(costs)} finished runs on this host)"
    elif left:
        told += "; no finished run of such a size on this host tells how long they take"
    return [*markdown(columns, cells), told]


def state(config: Config) -> str:
    """Raises CheckpointError where the folder is another configuration's."""
    if config.resume == "never":
        return "not started"
    runs.finished(config)
    folder = runs.folder_of(config)
    return runs.state_of(folder, result_of(folder))


def _facts(config: Config) -> tuple[str, str]:
    table = layers(config)
    return f"{parameters(table):,}", f"{macs(table) / 1e9:.3f}"


def _told(seconds: float | None, state: str) -> str:
    return "-" if seconds is None or state == "finished" else duration(seconds)


def finished_costs(root: Path) -> list[Cost]:
    """What the finished runs of this host have cost. A folder that cannot be read tells nothing."""
    costs: list[Cost] = []
    for folder in runs.find_runs([root]):
        try:
            run = runs.read_run(folder)
            config = read(config_of(folder), Problems())
        except VggexpError:
            continue
        here = run.environment.get("host") == socket.gethostname()
        if config is not None and here and run.state == "finished" and "seconds" in run.result:
            billions = training_macs(config) / 1e9
            facts = network_name(config), config.device.name, macs(layers(config))
            costs.append(Cost(*facts, run.result["seconds"] / billions))
    return costs


def expected_seconds(config: Config, costs: Sequence[Cost]) -> float | None:
    """By runs of the same network on the same device, else of any of about its size on it; None without such runs."""
    own = macs(layers(config))
    alike = [cost for cost in costs if cost.device == config.device.name and own / ALIKE <= cost.macs <= own * ALIKE]
    same = [cost for cost in alike if cost.network == network_name(config)]
    rates = [cost.seconds for cost in same or alike]
    return median(rates) * training_macs(config) / 1e9 if rates else None
