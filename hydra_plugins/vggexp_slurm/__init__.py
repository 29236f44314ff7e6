"""Launches the jobs of a sweep on Slurm and waits for them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DEVICE_HINT = "where the nodes are another kind, write device=cuda or device=cpu"
POLL_SECONDS = 10  # between two checks of runs that other processes work on


def is_slurm(launcher: Any) -> bool:
    """Returns whether the launcher is the Slurm launcher of hydra-submitit-launcher."""
    return getattr(launcher, "_EXECUTOR", None) == "slurm"


def launch(launcher: Any, jobs: Sequence[Sequence[str]], first: int = 0) -> Sequence[Any]:
    """Launches jobs and waits for them. On Slurm a job without a result counts as failed.

    Args:
        launcher: any launcher.
        jobs: the overrides of each job.
        first: the index of the first job in the sweep.

    Raises:
        SystemExit: with a VggexpError, if Slurm or another launcher refuses the jobs.
    """
    from hydra_plugins.vggexp_local_launcher import LocalLauncher
    from vggexp.errors import ConfigError
    from vggexp.system.files import limit_umask

    if isinstance(launcher, LocalLauncher):
        return launcher.launch(jobs, initial_job_idx=first)
    if is_slurm(launcher):
        from hydra_plugins.vggexp_slurm import _jobs

        _jobs.install()
    folder = Path(launcher.config.hydra.sweep.dir)
    try:
        with limit_umask(folder):  # a launcher runs what it has pickled into its folder
            return launcher.launch(jobs, initial_job_idx=first)
    except Exception as error:  # wrong values of the launcher's keys; jobs catch their own errors
        text = " ".join(str(error).split()) or type(error).__name__
        # Hydra lets no other exception pass unchanged.
        raise SystemExit(ConfigError(f"hydra.launcher: {text}")) from error


def launch_missing(launcher: Any, jobs: Mapping[tuple[str, ...], Any]) -> None:
    """Launches the jobs that have not finished, and waits for jobs that already run.

    A finished job would otherwise wait in the queue only to end at once.

    Args:
        launcher: the Slurm launcher.
        jobs: the configuration of each job by the job's overrides.
    """
    from vggexp.runs import records
    from vggexp.system import locks

    if launcher.config.hydra.runtime.choices.device == "auto":
        device = next(iter(jobs.values())).device.name
        print(f"warning: device=auto is {device} on this machine; {DEVICE_HINT}", flush=True)
    waiting = [job for job, config in jobs.items() if not _is_finished(config)]
    finished = len(jobs) - len(waiting)
    if finished:
        print(f"already finished: {finished} of {len(jobs)} jobs", flush=True)
    while waiting:
        running = [job for job in waiting if locks.is_locked(records.run_dir(jobs[job]))]
        missing = []
        for job in waiting:
            if job not in running and not _is_finished(jobs[job]):
                missing.append(list(job))
        if missing:
            launch(launcher, missing)
        elif running:
            time.sleep(POLL_SECONDS)
        waiting = [job for job in waiting if locks.is_locked(records.run_dir(jobs[job]))]


def _is_finished(config: Any) -> bool:
    """Returns False if another run has the name; the job itself reports this error."""
    from vggexp.errors import VggexpError
    from vggexp.runs import records

    try:
        return records.done_result(config) is not None
    except VggexpError:
        return False
