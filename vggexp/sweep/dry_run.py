"""Describes the jobs of a sweep before it starts: cost and state of each, and the expected time."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from vggexp.config.derived import command_epochs, disk_bytes, layers
from vggexp.config.schema import Config, Sweep
from vggexp.formatting import duration, format_bytes, markdown_table, plural
from vggexp.models.shapes import macs, parameters
from vggexp.runs import forecast, records
from vggexp.runs.forecast import Forecast
from vggexp.sweep.halving import (
    Jobs,
    entered_rungs,
    has_work,
    missing_epochs,
    most_repeats,
    plan_sweep,
)
from vggexp.sweep.progress import finished_epochs
from vggexp.sweep.results import setting_columns
from vggexp.sweep.search_space import SearchPlan
from vggexp.system.cpu import default_threads

FAILED_BEFORE = "failed before (sweep.retry_failed=true tries again)"


class JobOutlook(NamedTuple):
    """What is known of a job before the sweep starts."""

    config: Config
    folder: Path  # the run directory
    state: str  # as in `records.run_state`; paused if the run has reached run.until
    time: Forecast  # from the first epoch
    is_done: bool  # its command has nothing left to do
    trained: int = 0  # epochs that the run has finished

    @property
    def epochs_left(self) -> int:
        return max(0, command_epochs(self.config) - self.trained)

    @property
    def seconds_left(self) -> float | None:
        """The expected time of the epochs that are left; None if it is unknown."""
        if self.time.seconds is None:
            return None
        return self.time.seconds * self.epochs_left / command_epochs(self.config)

    def will_run(self) -> bool:
        keeps_failure = self.state == "failed" and not self.config.sweep.retry_failed
        return not self.is_done and not keeps_failure


class RungWork(NamedTuple):
    """What is known of a rung before the sweep goes on."""

    number: int  # from 1
    epochs: int  # to which its runs train
    span: int  # epochs after the rung before
    runs: int  # that enter it, unless runs fail
    missing: list[int]  # epochs, of each run that has to train


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
        CheckpointError: as `records.done_result`.
        ResourceError: as `records.done_result`.
    """
    outlooks = []
    for config, time in zip(configs, expected_times(configs, jobs_at_a_time), strict=True):
        folder = records.run_dir(config)
        done = records.done_result(config)
        result = done or records.own_result(config, folder)
        state = records.run_state(folder, result)
        trained = finished_epochs(folder)
        outlooks.append(JobOutlook(config, folder, state, time, done is not None, trained))
    return outlooks


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
    expected = [outlook.seconds_left if outlook.will_run() else None for outlook in outlooks]
    if sweep.halving is None:
        lines = _job_table([job for job, _ in jobs], outlooks, expected, "expected")
        return [*lines, outlook_line(outlooks, jobs_at_a_time)]
    configs = {tuple(overrides): config for overrides, config in jobs}
    rung = entered_rungs(configs, sweep)[-1]
    missing = missing_epochs(rung)
    expected = []
    for job, outlook in zip(configs, outlooks, strict=True):
        seconds = None
        if job in missing and outlook.time.seconds is not None:
            seconds = outlook.time.seconds * missing[job] / outlook.config.train.epochs
        expected.append(seconds)
    return [
        *_job_table([*configs], outlooks, expected, f"expected in rung {rung.number}"),
        *rung_lines(configs, outlooks, jobs_at_a_time, sweep),
        halving_disk_line(configs, sweep),
    ]


def rung_lines(
    jobs: Jobs, outlooks: Sequence[JobOutlook], jobs_at_a_time: int, sweep: Sweep
) -> list[str]:
    """Returns a line for each rung of sweep.halving, and one with their epochs and time.

    Args:
        jobs: all jobs of the sweep.
        outlooks: the result of `job_outlooks`; [] if it is unknown.
        jobs_at_a_time: as in `job_outlooks`.
        sweep: the section `sweep`.
    """
    plan = _plan_work(jobs, sweep)
    epoch_seconds = _epoch_seconds(outlooks)
    runs_width = len(plural(plan[0].runs, "run"))
    epochs_width = len(str(plan[-1].epochs))
    lines = []
    for work, following in zip(plan, [*plan[1:], None], strict=True):
        runs = f"{plural(work.runs, 'run'):<{runs_width}}"
        parts = [f"rung {work.number}", f"{runs} to epoch {work.epochs:<{epochs_width}}"]
        if epoch_seconds is not None and work.missing:
            seconds = _time_of(work.missing, epoch_seconds, jobs_at_a_time)
            parts.append(f"about {duration(seconds)}")
        if following is not None:
            parts.append(f"{following.runs} {'goes' if following.runs == 1 else 'go'} on")
        if work.number == 1:
            parts.append(f"({sweep.objective})")
        lines.append("   ".join(parts).rstrip())
    return [*lines, _epochs_line(plan, outlooks, jobs_at_a_time)]


def _epochs_line(
    plan: Sequence[RungWork], outlooks: Sequence[JobOutlook], jobs_at_a_time: int
) -> str:
    """Returns the epochs of all rungs, the runs that are done, and the time of the others."""
    full_grid = [plan[-1].epochs] * plan[0].runs
    total = sum(work.runs * work.span for work in plan)
    line = f"{total} of {sum(full_grid)} epochs"
    if not outlooks:
        return line
    missing = sum(sum(work.missing) for work in plan)
    to_train = f"{plural(missing, 'epoch')} to train"
    if missing and any(outlook.state == "finished" for outlook in outlooks):
        to_train = f"at most {to_train}"  # a run that goes on may have these epochs
    line = f"{line}: {_states_text(outlooks)}, {to_train}"
    if not missing:
        return line
    at_a_time = min(jobs_at_a_time, max(len(work.missing) for work in plan))
    line = f"{line}, {plural(at_a_time, 'job')} at a time"
    epoch_seconds = _epoch_seconds(outlooks)
    if epoch_seconds is None:
        return f"{line}; their time is unknown, {forecast.NO_RUNS}"
    seconds = sum(_time_of(work.missing, epoch_seconds, jobs_at_a_time) for work in plan)
    sources = {source for outlook in outlooks for source in outlook.time.sources}
    full_seconds = _time_of(full_grid, epoch_seconds, jobs_at_a_time)
    time = forecast.time_text(seconds, len(sources))
    return f"{line}, {time}; the full grid about {duration(full_seconds)}"


def _plan_work(jobs: Jobs, sweep: Sweep) -> list[RungWork]:
    entered = entered_rungs(jobs, sweep)
    has_ended = not has_work(entered[-1])
    begin = 0
    plan = []
    for planned in plan_sweep(jobs, sweep):
        runs = min(len(jobs), planned.settings * most_repeats(jobs))
        span = planned.epochs - begin
        begin = planned.epochs
        missing = [] if has_ended else [span] * runs
        if planned.number <= len(entered):
            missing = [*missing_epochs(entered[planned.number - 1]).values()]
        plan.append(RungWork(planned.number, planned.epochs, span, runs, missing))
    return plan


def _time_of(epochs: Sequence[int], epoch_seconds: float, jobs_at_a_time: int) -> float:
    return forecast.total_seconds([count * epoch_seconds for count in epochs], jobs_at_a_time)


def _states_text(outlooks: Sequence[JobOutlook]) -> str:
    """Returns how many runs have finished, are paused, and have failed before."""
    states = Counter(outlook.state for outlook in outlooks)
    text = f"{plural(states['finished'], 'run')} finished, {states['paused']:,} paused"
    failed = sum(o.state == "failed" and not o.will_run() for o in outlooks)
    return f"{text}, {failed:,} {FAILED_BEFORE}" if failed else text


def _epoch_seconds(outlooks: Sequence[JobOutlook]) -> float | None:
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


def _job_table(
    overrides: Sequence[Sequence[str]],
    outlooks: Sequence[JobOutlook],
    expected: Sequence[float | None],
    title: str,
) -> list[str]:
    """Returns the table of the jobs; `expected` has seconds or None, below `title`."""
    keys, job_values = setting_columns(overrides, [outlook.config for outlook in outlooks])
    cells = []
    for outlook, values, seconds in zip(outlooks, job_values, expected, strict=True):
        table = layers(outlook.config)
        cells.append(
            [
                *(values.get(key, "-") for key in keys),
                f"{parameters(table):,}",
                format_bytes(macs(table), "MAC"),
                outlook.state,
                "-" if seconds is None else duration(seconds),
                outlook.folder.name,
            ]
        )
    columns = [*keys, "parameters", "MACs an image", "state", title, "run"]
    return markdown_table(columns, cells)


def outlook_line(outlooks: Sequence[JobOutlook], jobs_at_a_time: int) -> str:
    """Returns how many jobs there are, how many will run for how many epochs, and how long."""
    to_run = [outlook for outlook in outlooks if outlook.will_run()]
    done = Counter(outlook.state for outlook in outlooks if outlook.is_done)
    line = f"{plural(len(outlooks), 'job')}: {done['finished']:,} finished"
    if done["paused"]:
        line = f"{line}, {done['paused']:,} paused"
    failed = len(outlooks) - done.total() - len(to_run)
    if failed:
        line = f"{line}, {failed:,} {FAILED_BEFORE}"
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
    seconds = [outlook.seconds_left or 0.0 for outlook in known]
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
    at_a_time = plan.trials_at_a_time
    left = max(0, trials - ended)
    line = f"{plural(trials, 'trial')}: {ended:,} ended, {left:,} to run"
    if not left:
        return line
    epochs = plural(left * command_epochs(plan.config), "epoch")
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
    return sum(outlook.epochs_left for outlook in outlooks)
