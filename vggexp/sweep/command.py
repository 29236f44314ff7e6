"""Runs the grids and searches of `python -m vggexp`, and reports what their jobs leave behind."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from vggexp.config import compose
from vggexp.config.overrides import quoted
from vggexp.errors import SweepError
from vggexp.formatting import printable, tensorboard_command
from vggexp.loggers.console import print_text
from vggexp.runs import jsonl, records
from vggexp.runs.directory import METRICS
from vggexp.runs.sweeps import SweptRun, write_runs
from vggexp.sweep.expand import GridSweep
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
    overrides = [job.overrides for job in grid.jobs]
    if configs[0].sweep.dry_run:
        from vggexp.sweep.dry_run import dry_run_table

        print_text("\n".join(dry_run_table(list(zip(overrides, configs, strict=True)))))
        return 0
    # Before the jobs run: with resume=never the next call would find other folders.
    run_dirs = [records.run_dir(config) for config in configs]
    folder = grid.folder
    hint = "choose another run.root or hydra.sweep.dir"
    with os_error_as_resource_error(folder, "made", hint):
        make_dir(folder)
        write_runs(folder, [SweptRun(*pair) for pair in zip(run_dirs, overrides, strict=True)])
    task = HydraTask(grid.configs())
    code = run_hydra(command, _sweep_dir_override(folder), grid.label_override, task=task)
    if code:
        return code
    jobs = []
    for (job_overrides, config), run_dir in zip(grid.jobs, run_dirs, strict=True):
        reason = task.errors.get(tuple(job_overrides), "")
        jobs.append(SweepJob(job_overrides, run_dir, config, reason))
    rows = write_sweep_table(jobs, configs[0].sweep.objective, folder)
    write_repeats_events(folder, repeat_folders(jobs))
    _print_where(folder)
    unfinished = sum(row["state"] != "finished" for row in rows)
    if unfinished:
        raise SweepError(
            f"{unfinished} of {len(configs)} jobs did not finish; "
            f"the lines above and {folder} hold the reasons"
        )
    return 0


def _print_where(folder: Path) -> None:
    """Prints the folder of a sweep, and the command that shows its runs."""
    print_text(f"folder   {folder}\nshow     {tensorboard_command(folder)}")


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
        code = run_hydra(command, _sweep_dir_override(folder), plan.label_override)
        if code:
            return code
        study = open_study(folder)
    rows = write_sweep_table(trial_jobs(study, plan.axes), objective, folder)
    _print_where(folder)
    failed = sum(row[objective] is None for row in rows)
    if failed:
        raise SweepError(
            f"{failed} of {len(rows)} runs have no {objective}; "
            f"the lines above and {folder} hold the reasons"
        )
    return 0
