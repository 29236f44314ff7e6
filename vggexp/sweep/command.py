"""Runs the grids and searches of `python -m vggexp`, and reports what their jobs leave behind."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from vggexp.config import compose
from vggexp.config.derived import command_epochs
from vggexp.config.overrides import quoted
from vggexp.errors import SweepError, VggexpError
from vggexp.formatting import plural, printable, report_command, tensorboard_command
from vggexp.loggers.console import print_text
from vggexp.runs import jsonl, records
from vggexp.runs.directory import METRICS
from vggexp.runs.sweeps import SweptRun, write_runs
from vggexp.sweep.dry_run import (
    JobOutlook,
    dry_run_lines,
    job_outlooks,
    outlook_line,
    rung_lines,
    search_line,
)
from vggexp.sweep.expand import GridSweep
from vggexp.sweep.halving import launched_job, run_rungs, score_at
from vggexp.sweep.lr_range import has_diverged, range_lines
from vggexp.sweep.results import SweepJob, repeat_folders, swept_keys, write_sweep_table
from vggexp.sweep.search_space import SearchPlan
from vggexp.sweep.task import HydraTask, run_hydra
from vggexp.system.files import make_dir, os_error_as_resource_error
from vggexp.system.locks import lock_run_dir


def run_grid(command: compose.Command, grid: GridSweep, first_words: Sequence[str]) -> int:
    """Runs the jobs of a grid under Hydra's launcher; then prints and writes their results.

    Args:
        command: the command.
        grid: its checked jobs.
        first_words: of the record of each run; see `expand.first_words`.

    Returns:
        The exit code.

    Raises:
        ResourceError: the folder of the sweep cannot be made.
        SweepError: a job did not finish.
    """
    configs = [job.config for job in grid.jobs]
    overrides = [job.overrides for job in grid.jobs]
    at_a_time = grid.jobs_at_a_time
    if grid.sweep.dry_run:
        outlooks = job_outlooks(configs, at_a_time)
        print_text("\n".join(dry_run_lines(grid.jobs, outlooks, at_a_time, grid.sweep)))
        return 0
    # Before the jobs run: with resume=never the next call would find other folders.
    run_dirs = [records.run_dir(config) for config in configs]
    folder = grid.folder
    hint = "choose another run.root or hydra.sweep.dir"
    with os_error_as_resource_error(folder, "made", hint):
        make_dir(folder)
        write_runs(folder, [SweptRun(*pair) for pair in zip(run_dirs, overrides, strict=True)])
    print_text("\n".join(_first_lines(grid)))
    task = HydraTask(grid.configs(), grid.sweep, swept_keys(overrides), first_words)
    code = run_hydra(command, _sweep_dir_override(folder), grid.label_override, task=task)
    if code:
        return code
    rungs = [] if grid.sweep.halving is None else [*run_rungs(grid.configs(), grid.sweep)]
    jobs = []
    for (job_overrides, config), run_dir in zip(grid.jobs, run_dirs, strict=True):
        job = tuple(job_overrides)
        entered = [rung for rung in rungs if job in rung.jobs]
        scores = {}
        for rung in entered:
            config = rung.jobs[job]
            scores[rung.epochs] = score_at(config, rung.epochs, grid.sweep.objective)
        reason = task.errors.get(launched_job(job, config), "")
        number = entered[-1].number if entered else None
        jobs.append(SweepJob(job_overrides, run_dir, config, reason, number, scores))
    rows = write_sweep_table(jobs, grid.sweep.objective, folder)
    write_events(folder, jobs)
    unfinished = {row["run"] for row in rows if row["state"] not in ("finished", "paused")}
    if grid.sweep.lr_range:
        print_text("\n".join(range_lines(jobs, grid.sweep.objective, first_words)))
        unfinished -= {job.folder.name for job in jobs if has_diverged(job)}  # a result of the test
    _print_where(folder)
    if unfinished:
        raise SweepError(
            f"{len(unfinished)} of {plural(len(configs), 'job')} did not finish; "
            f"the lines above and {folder} hold the reasons"
        )
    return 0


def _first_lines(grid: GridSweep) -> list[str]:
    """Returns how many jobs and epochs a grid has and how long they may take, or its rungs."""
    configs = [job.config for job in grid.jobs]
    outlooks: list[JobOutlook] = []
    with contextlib.suppress(VggexpError):  # of one job, whose row in the table has the reason
        outlooks = job_outlooks(configs, grid.jobs_at_a_time)
    if grid.sweep.halving is not None:
        return rung_lines(grid.configs(), outlooks, grid.jobs_at_a_time, grid.sweep)
    if outlooks:
        return [f"sweep    {outlook_line(outlooks, grid.jobs_at_a_time)}"]
    epochs = sum(map(command_epochs, configs))
    return [f"sweep    {plural(len(configs), 'job')}, {plural(epochs, 'epoch')}"]


def _print_where(folder: Path) -> None:
    """Prints where the results of a sweep are, and the commands that show its runs."""
    lines = [
        f"results  {folder / 'results.md'}",
        f"report   {report_command(folder)}",
        f"show     {tensorboard_command(folder)}",
    ]
    print_text("\n".join(lines))


def _sweep_dir_override(folder: Path) -> str:
    return f"hydra.sweep.dir={quoted(str(folder))}"


def write_events(folder: Path, jobs: Sequence[SweepJob]) -> None:
    """Writes what TensorBoard shows of a sweep, or warns: TensorBoard is only a view."""
    from vggexp.sweep.tensorboard import write_means

    try:
        histories = {}
        for label, run_dirs in repeat_folders(jobs).items():
            histories[label] = [jsonl.read(run_dir / METRICS) for run_dir in run_dirs]
        write_means(folder, histories)
    except Exception as error:
        print(printable(f"warning: TensorBoard: {error}"), file=sys.stderr)


def run_search(command: compose.Command, plan: SearchPlan, first_words: Sequence[str]) -> int:
    """Runs the missing trials of a search; then prints and writes the results of all trials.

    Args:
        command: the command.
        plan: the checked search.
        first_words: of the record of each run; see `expand.first_words`.

    Returns:
        The exit code.

    Raises:
        SweepError: a trial failed.
    """
    from vggexp.sweep.study import open_study, proposed_trials, trial_jobs

    folder = plan.folder
    objective = plan.config.sweep.objective
    with lock_run_dir(folder):
        # Refuses another search's folder before Hydra.
        study = open_study(folder, plan.name, objective)
        ended = sum(trial.state.is_finished() for trial in proposed_trials(study))
        print_text(f"sweep    {search_line(plan, ended)}")
        task = HydraTask(sweep=plan.config.sweep, swept=list(plan.axes), first_words=first_words)
        parallel = f"hydra.sweeper.parallel={plan.settings.parallel}"
        code = run_hydra(
            command, _sweep_dir_override(folder), plan.label_override, parallel, task=task
        )
        if code:
            return code
        study = open_study(folder)
    jobs = trial_jobs(study, plan.axes)
    rows = write_sweep_table(jobs, objective, folder)
    write_events(folder, jobs)
    _print_where(folder)
    failed = sum(row[objective] is None for row in rows)
    if failed:
        raise SweepError(
            f"{failed} of {plural(len(rows), 'run')} have no {objective}; "
            f"the lines above and {folder} hold the reasons"
        )
    return 0
