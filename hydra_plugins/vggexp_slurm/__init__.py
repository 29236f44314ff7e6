"""A sweep on Slurm: which jobs are submitted, and what the sweep learns of those that leave no result."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

SAY = "where the nodes are another kind, write device=cuda or device=cpu"
LOOK_SECONDS = 10  # between two looks at runs that other processes work on


def is_slurm(launcher: Any) -> bool:
    """Whether it is that of hydra-submitit-launcher."""
    return getattr(launcher, "_EXECUTOR", None) == "slurm"


def launch(launcher: Any, jobs: Sequence[Sequence[str]], first: int = 0) -> Sequence[Any]:
    """Submits and waits; a job without a result is a failed one. Raises SystemExit with a VggexpError."""
    if not is_slurm(launcher):
        return launcher.launch(jobs, initial_job_idx=first)
    from hydra_plugins.vggexp_slurm import _jobs
    from vggexp.errors import ConfigError

    _jobs.install()
    try:
        return launcher.launch(jobs, initial_job_idx=first)
    except RuntimeError as error:  # sbatch refuses, or is not there
        told = ConfigError(f"hydra.launcher: {' '.join(str(error).split())}")
        raise SystemExit(
            told
        ) from error  # unlike any other exception it passes through Hydra as it is


def launch_missing(launcher: Any, jobs: Mapping[tuple[str, ...], Any]) -> None:
    """A finished job takes no place in the queue, and one that runs already is waited for.

    jobs: the configuration of each job by its overrides.
    """
    from vggexp.runs import records
    from vggexp.system import locks

    if launcher.config.hydra.runtime.choices.device == "auto":
        print(
            f"warning: device=auto is {next(iter(jobs.values())).device.name} on this machine; {SAY}",
            flush=True,
        )
    waiting = [job for job, config in jobs.items() if not _finished(config)]
    if done := len(jobs) - len(waiting):
        print(f"already finished: {done} of {len(jobs)} jobs", flush=True)
    while waiting:
        running = [job for job in waiting if locks.is_locked(records.run_dir(jobs[job]))]
        if missing := [job for job in waiting if job not in running and not _finished(jobs[job])]:
            launch(launcher, [list(job) for job in missing])
        elif running:
            time.sleep(LOOK_SECONDS)
        waiting = [job for job in waiting if locks.is_locked(records.run_dir(jobs[job]))]


def _finished(config: Any) -> bool:
    """False where another run has the name: the job itself tells it."""
    from vggexp.errors import VggexpError
    from vggexp.runs import records

    try:
        return records.finished_result(config) is not None
    except VggexpError:
        return False
