"""Runs the grids and searches of `python -m vggexp`, and reports what their jobs leave behind."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vggexp.config import compose
from vggexp.config.overrides import quoted
from vggexp.errors import SweepError
from vggexp.formatting import printable
from vggexp.loggers.console import print_text
from vggexp.runs import jsonl, records
from vggexp.runs.directory import METRICS
from vggexp.sweep.expand import GridSweep
from vggexp.sweep.halving import launched_job, plan_lines, run_rungs
from vggexp.sweep.results import SweepJob, repeat_folders, write_sweep_table
from vggexp.sweep.search_space import SearchPlan
from vggexp.sweep.task import HydraTask, run_hydra
from vggexp.system.files import make_dir, os_error_as_resource_error
from vggexp.system.locks import lock_run_dir


def run_grid(command: compose.Command, grid: GridSweep) -> int:
    """Runs the jobs of a grid under Hydra's launcher; then prints and writes their results.

    Returns:
        The exit code.

    Raises:
        ResourceError: the folder of the sweep cannot be made.
        SweepError: a job did not finish.
    """
    configs = [job.config for job in grid.jobs]
    if grid.sweep.dry_run:
        from vggexp.sweep.dry_run import dry_run_table

        print_text("\n".join(dry_run_table(grid.jobs, grid.sweep)))
        return 0
    # Before the jobs run: with resume=never the next call would find other folders.
    run_dirs = [records.run_dir(config) for config in configs]
    folder = grid.folder
    hint = "choose another run.root or hydra.sweep.dir"
    with os_error_as_resource_error(folder, "made", hint):
        make_dir(folder)
    task = HydraTask(grid.configs(), grid.sweep)
    if grid.sweep.halving is not None:
        print_text("\n".join(plan_lines(grid.configs(), grid.sweep)))
    code = run_hydra(command, _sweep_dir_override(folder), task=task)
    if code:
        return code
    rungs = [] if grid.sweep.halving is None else [*run_rungs(grid.configs(), grid.sweep)]
    last_rung = {job: rung for rung in rungs for job in rung.jobs}
    jobs = []
    for (job_overrides, config), run_dir in zip(grid.jobs, run_dirs, strict=True):
        job = tuple(job_overrides)
        rung = last_rung.get(job)
        if rung is not None:
            config = rung.jobs[job]
        reason = task.errors.get(launched_job(job, config), "")
        number = None if rung is None else rung.number
        jobs.append(SweepJob(job_overrides, run_dir, config, reason, number))
    epochs = [rung.epochs for rung in rungs]
    rows = write_sweep_table(jobs, grid.sweep.objective, folder, epochs)
    write_repeats_events(folder, repeat_folders(jobs))
    unfinished = sum(row["state"] not in ("finished", "paused") for row in rows)
    if unfinished:
        raise SweepError(
            f"{unfinished} of {len(configs)} jobs did not finish; "
            f"the lines above and {folder} hold the reasons"
        )
    return 0


def _sweep_dir_override(folder: Path) -> str:
    return f"hydra.sweep.dir={quoted(str(folder))}"


def write_repeats_events(folder: Path, run_dirs: Mapping[str, Sequence[Path]]) -> None:
    """Writes the means over repeats for TensorBoard, or warns: TensorBoard is only a view.

    Args:
        folder: the folder of the sweep.
        run_dirs: the result of `repeat_folders`.
    """
    if not run_dirs:
        return
    from vggexp.sweep.tensorboard import write_means

    try:
        histories = {}
        for label, folders in run_dirs.items():
            histories[label] = [jsonl.read(run_dir / METRICS) for run_dir in folders]
        write_means(folder, histories)
    except Exception as error:
        print(printable(f"warning: TensorBoard: {error}"), file=sys.stderr)


def run_search(command: compose.Command, plan: SearchPlan) -> int:
    """Runs the missing trials of a search; then prints and writes the results of all trials.

    Returns:
        The exit code.

    Raises:
        SweepError: a trial failed.
    """
    from vggexp.sweep.study import open_study, trial_jobs

    folder = plan.folder
    objective = plan.config.sweep.objective
    with lock_run_dir(folder):
        open_study(folder, plan.name, objective)  # refuses another search's folder before Hydra
        task = HydraTask(sweep=plan.config.sweep)
        code = run_hydra(command, _sweep_dir_override(folder), task=task)
        if code:
            return code
        study = open_study(folder)
    rows = write_sweep_table(trial_jobs(study, plan.axes), objective, folder)
    failed = sum(row[objective] is None for row in rows)
    if failed:
        raise SweepError(
            f"{failed} of {len(rows)} runs have no {objective}; "
            f"the lines above and {folder} hold the reasons"
        )
    return 0
