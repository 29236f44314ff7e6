"""Describes the jobs of a sweep before it starts: cost and state of each, and the expected time."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from vggexp.config.derived import disk_bytes, layers
from vggexp.config.schema import Config, Sweep
from vggexp.formatting import duration, format_bytes, markdown_table, plural
from vggexp.models.shapes import macs, parameters
from vggexp.runs import forecast, records
from vggexp.runs.forecast import Forecast
from vggexp.sweep.halving import Jobs, most_repeats, plan_lines, plan_sweep
from vggexp.sweep.results import setting_columns
from vggexp.sweep.search_space import SearchPlan
from vggexp.system.cpu import default_threads


class JobOutlook(NamedTuple):
    """What is known of a job before the sweep starts."""

    config: Config
    folder: Path  # the run directory
    state: str  # as in `records.run_state`
    time: Forecast

    def will_run(self) -> bool:
        keeps_failure = self.state == "failed" and not self.config.sweep.retry_failed
        return self.state != "finished" and not keeps_failure


def expected_times(configs: Sequence[Config], jobs_at_a_time: int) -> list[Forecast]:
    """Returns the expected time of each job from finished runs in run.root.

    Args:
        configs: of the jobs.
        jobs_at_a_time: jobs that share the threads of this host.
    """
    threads = max(1, default_threads() // jobs_at_a_time)
    machines = {forecast.expected_machine(config, threads) for config in configs}
    speeds = forecast.finished_speeds(Path(configs[0].run.root), list(machines))
    if not speeds:
        return [forecast.UNKNOWN] * len(configs)
    times = []
    for config in configs:
        counts = forecast.count_run_images(config)
        times.append(forecast.expected_time(config, counts, speeds, threads))
    return times


def job_outlooks(configs: Sequence[Config], jobs_at_a_time: int) -> list[JobOutlook]:
    """Returns the state and the expected time of each job. Reads run directories, writes nothing.

    Args:
        configs: of the jobs.
        jobs_at_a_time: jobs that share the threads of this host.

    Raises:
        CheckpointError: the directory of a job belongs to another configuration.
    """
    outlooks = []
    for config, time in zip(configs, expected_times(configs, jobs_at_a_time), strict=True):
        folder = records.run_dir(config)
        outlooks.append(JobOutlook(config, folder, _state(config, folder), time))
    return outlooks


def _state(config: Config, folder: Path) -> str:
    if config.resume == "never":
        return "not started"
    return records.run_state(folder, records.own_result(config, folder))


def dry_run_lines(
    jobs: Sequence[tuple[Sequence[str], Config]],
    outlooks: Sequence[JobOutlook],
    jobs_at_a_time: int,
    sweep: Sweep,
) -> list[str]:
    """Returns the table of a sweep's jobs, and `outlook_line` or the rungs and their disk.

    Args:
        jobs: overrides and configuration of each job.
        outlooks: the result of `job_outlooks`.
        jobs_at_a_time: as in `job_outlooks`.
        sweep: the section `sweep`.
    """
    lines = _job_table([overrides for overrides, _ in jobs], outlooks)
    if sweep.halving is None:
        return [*lines, outlook_line(outlooks, jobs_at_a_time)]
    configs = {tuple(overrides): config for overrides, config in jobs}
    rungs = plan_lines(configs, sweep, epoch_seconds(outlooks))
    return [*lines, *rungs, halving_disk_line(configs, sweep)]


def epoch_seconds(outlooks: Sequence[JobOutlook]) -> float | None:
    """Returns the mean time of an epoch of a job; None if that of one job is unknown."""
    known = [outlook.time.seconds for outlook in outlooks if outlook.time.seconds is not None]
    if not known or len(known) < len(outlooks):
        return None
    return fmean(known) / outlooks[0].config.train.epochs


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
    sizes = [format_bytes(size, "B") for size in (total, sum(whole))]
    return f"disk     at most {sizes[0]} of checkpoints at the end; the full grid {sizes[1]}"


def _job_table(overrides: Sequence[Sequence[str]], outlooks: Sequence[JobOutlook]) -> list[str]:
    keys, job_values = setting_columns(overrides, [outlook.config for outlook in outlooks])
    cells = []
    for outlook, values in zip(outlooks, job_values, strict=True):
        expected = "-"
        if outlook.will_run() and outlook.time.seconds is not None:
            expected = duration(outlook.time.seconds)
        table = layers(outlook.config)
        cells.append(
            [
                *(values.get(key, "-") for key in keys),
                f"{parameters(table):,}",
                format_bytes(macs(table), "MAC"),
                outlook.state,
                expected,
                outlook.folder.name,
            ]
        )
    columns = [*keys, "parameters", "MACs an image", "state", "expected", "run"]
    return markdown_table(columns, cells)


def outlook_line(outlooks: Sequence[JobOutlook], jobs_at_a_time: int) -> str:
    """Returns how many jobs there are, how many will run for how many epochs, and how long."""
    to_run = [outlook for outlook in outlooks if outlook.will_run()]
    finished = sum(outlook.state == "finished" for outlook in outlooks)
    line = f"{plural(len(outlooks), 'job')}: {finished:,} finished"
    failed = len(outlooks) - finished - len(to_run)
    if failed:
        line = f"{line}, {failed:,} failed before (sweep.retry_failed=true tries again)"
    line = f"{line}, {len(to_run):,} to run"
    if not to_run:
        return line
    line = f"{line} for {plural(_count_epochs(to_run), 'epoch')}"
    at_a_time = min(jobs_at_a_time, len(to_run))
    if len(to_run) > 1:
        line = f"{line}, {plural(at_a_time, 'job')} at a time"
    known = [outlook for outlook in to_run if outlook.time.seconds is not None]
    unknown = [outlook for outlook in to_run if outlook.time.seconds is None]
    if not known:
        return f"{line}; their time is unknown, {forecast.NO_RUNS}"
    seconds = [outlook.time.seconds or 0.0 for outlook in known]
    sources = {source for outlook in known for source in outlook.time.sources}
    total = forecast.total_seconds(seconds, at_a_time)
    line = f"{line}, {forecast.time_text(total, len(sources))}"
    if unknown:
        line = f"{line}, and the unknown time of {plural(_count_epochs(unknown), 'epoch')}"
    return line


def search_line(plan: SearchPlan, ended: int) -> str:
    """Returns how many trials a search has, how many will run for how many epochs, and how long.

    Args:
        plan: the search.
        ended: how many of its trials have ended.
    """
    trials = plan.settings.n_trials
    at_a_time = plan.settings.parallel or 1
    left = max(0, trials - ended)
    line = f"{plural(trials, 'trial')}: {ended:,} ended, {left:,} to run"
    if not left:
        return line
    epochs = plural(left * plan.config.train.epochs, "epoch")
    condition = "each trial takes as long as one of the first values"
    if plan.config.sweep.halving is not None:
        epochs = f"at most {epochs}"
        condition += ", and none stops early"
    line = f"{line} for {epochs}, {plural(at_a_time, 'trial')} at a time"
    (time_of_one,) = expected_times([plan.config], plan.jobs_at_a_time)
    if time_of_one.seconds is None:
        return f"{line}; their time is unknown, {forecast.NO_RUNS}"
    total = forecast.total_seconds([time_of_one.seconds] * left, at_a_time)
    time = forecast.time_text(total, len(time_of_one.sources))
    return f"{line}, {time} if {condition}"


def _count_epochs(outlooks: Sequence[JobOutlook]) -> int:
    return sum(outlook.config.train.epochs for outlook in outlooks)
