"""Prints the jobs of a sweep before it starts: cost and state of each, and the expected time."""

import socket
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from vggexp.config.derived import disk_bytes, layers, training_macs
from vggexp.config.run_id import network_name
from vggexp.config.schema import Config, Sweep
from vggexp.errors import VggexpError
from vggexp.formatting import duration, markdown_table
from vggexp.models.shapes import macs, parameters
from vggexp.runs import records
from vggexp.sweep.halving import Jobs, most_repeats, plan_lines, plan_sweep
from vggexp.sweep.results import setting_columns

# Only runs within this factor in multiply-adds an image predict the time of a job: the time for
# one multiply-add depends on the size of the network.
SIMILAR_MACS_FACTOR = 8


class RunCost(NamedTuple):
    """The cost of a finished run."""

    network: str
    device: str
    macs: int  # multiply-adds an image
    seconds: float  # for 10^9 multiply-adds of training


def dry_run_table(jobs: Sequence[tuple[Sequence[str], Config]], sweep: Sweep) -> list[str]:
    """Returns the table of a sweep's jobs and a line with their number and expected time.

    With sweep.halving it also returns the rungs, and the disk that the sweep takes.

    Reads run directories and writes nothing.

    Args:
        jobs: overrides and configuration of each job.
        sweep: the section `sweep`.

    Raises:
        CheckpointError: the directory of a job belongs to another configuration.
    """
    _, first = jobs[0]
    costs = finished_costs(Path(first.run.root))
    keys, job_values = setting_columns(
        [overrides for overrides, _ in jobs],
        [config for _, config in jobs],
    )
    cells = []
    remaining: list[float | None] = []  # expected seconds of the jobs that have not finished
    all_seconds: list[float | None] = []
    for (_, config), values in zip(jobs, job_values, strict=True):
        job_state = state(config)
        seconds = expected_seconds(config, costs)
        all_seconds.append(seconds)
        expected = "-"
        if job_state != "finished":
            remaining.append(seconds)
            expected = "-" if seconds is None else duration(seconds)
        table = layers(config)
        cells.append(
            [
                *(values.get(key, "-") for key in keys),
                f"{parameters(table):,}",
                f"{macs(table) / 1e9:.3f}",
                job_state,
                expected,
                records.run_dir(config).name,
            ]
        )
    columns = [*keys, "parameters", "GMAC an image", "state", "expected", "run"]
    lines = [*markdown_table(columns, cells), _total_line(len(jobs), remaining, len(costs))]
    if sweep.halving is not None:
        configs = {tuple(overrides): config for overrides, config in jobs}
        known = [seconds for seconds in all_seconds if seconds is not None]
        epoch_seconds = None
        if len(known) == len(jobs):
            epoch_seconds = fmean(known) / first.train.epochs
        lines += [*plan_lines(configs, sweep, epoch_seconds), halving_disk_line(configs, sweep)]
    return lines


def halving_disk_line(jobs: Jobs, sweep: Sweep) -> str:
    """Returns the most bytes of checkpoints at the end of a sweep, and of the full grid.

    A paused run keeps one checkpoint, with train.test_weights=best also the best one, and with
    train.keep=all that of each epoch.
    """
    *_, last = plan_sweep(jobs, sweep)
    finishing = min(len(jobs), last.settings * most_repeats(jobs))
    paused = []
    whole = []
    for config in jobs.values():
        disk = disk_bytes(config)
        whole.append(disk["run"])
        checkpoints = 2 if config.train.test_weights == "best" else 1
        paused.append(checkpoints * disk["checkpoint"])
        if config.train.keep == "all":
            paused[-1] = disk["run"]
    whole.sort(reverse=True)
    paused.sort(reverse=True)
    total = sum(whole[:finishing]) + sum(paused[: len(jobs) - finishing])
    sizes = [f"{size / 1e6:,.1f} MB" for size in (total, sum(whole))]
    return f"disk     at most {sizes[0]} of checkpoints at the end; the full grid {sizes[1]}"


def _total_line(count: int, remaining: Sequence[float | None], runs: int) -> str:
    """Returns the last line.

    Args:
        count: how many jobs the sweep has.
        remaining: expected seconds of the jobs that have not finished.
        runs: how many finished runs the expectation may use.
    """
    line = f"{count} jobs: {count - len(remaining)} finished, {len(remaining)} to run"
    if not remaining:
        return line
    known = [seconds for seconds in remaining if seconds is not None]
    if len(known) < len(remaining):
        return f"{line}; their time is unknown, no run of this size has finished on this host"
    total = duration(sum(known))
    return f"{line}, about {total} one after another (from {runs} finished runs on this host)"


def state(config: Config) -> str:
    """Returns the state of a job's run. Raises CheckpointError for another configuration's run."""
    if config.resume == "never":
        return "not started"
    folder = records.run_dir(config)
    return records.run_state(folder, records.own_result(config, folder))


def finished_costs(root: Path) -> list[RunCost]:
    """Returns the costs of the finished runs of this host; skips folders that cannot be read."""
    costs: list[RunCost] = []
    for folder in records.find_runs([root]):
        try:
            run = records.read_run(folder)
            config = records.load_config(folder)
        except VggexpError:
            continue
        if run.environment.get("host") != socket.gethostname():
            continue
        if run.state != "finished" or run.result.get("seconds") is None:
            continue
        billions = training_macs(config) / 1e9
        cost = RunCost(
            network=network_name(config),
            device=config.device.name,
            macs=macs(layers(config)),
            seconds=run.result["seconds"] / billions,
        )
        costs.append(cost)
    return costs


def expected_seconds(config: Config, costs: Sequence[RunCost]) -> float | None:
    """Returns the time that a job will take, by the median of finished runs on the same device.

    Uses the runs of the same network, or without them the runs of a similar size. Returns None
    if there are no such runs.
    """
    size = macs(layers(config))
    similar = []
    for cost in costs:
        is_similar = size / SIMILAR_MACS_FACTOR <= cost.macs <= size * SIMILAR_MACS_FACTOR
        if is_similar and cost.device == config.device.name:
            similar.append(cost)
    same = [cost for cost in similar if cost.network == network_name(config)]
    rates = [cost.seconds for cost in same or similar]
    if not rates:
        return None
    return median(rates) * training_macs(config) / 1e9
