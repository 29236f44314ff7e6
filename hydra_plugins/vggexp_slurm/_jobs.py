"""Replaces how submitit learns the states and results of its Slurm jobs.

submitit asks sacct, which needs accounting, and many clusters have none. submitit then waits for
a cancelled job forever. The controller's queue (squeue) exists on every cluster.

Imported only where submitit is installed: Hydra skips modules whose name begins with `_`.
"""

import sys
from collections import Counter
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from submitit.core.utils import UncompletedJobError
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

from vggexp.formatting import error_line

QUEUE = ["squeue", "--me", "--array", "--states=all", "--noheader", "--format=%i|%T|%N|%r"]
ENDED = "BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY TIMEOUT".split()
# Less than the five minutes for which a controller remembers a job that has ended.
POLL_SECONDS = 30
_original_results = SlurmJob.results


class QueueWatcher(SlurmInfoWatcher):
    """Reads the state of each job from the queue; a job that the queue no longer has has ended."""

    printed = ""  # the last line of states

    def _make_command(self) -> list[str] | None:
        return QUEUE if self._registered - self._finished else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        """Returns the fields of each registered job from the output of squeue."""
        text = string if isinstance(string, str) else string.decode()
        queued = super().read_info(f"JobID|State|NodeList|Reason\n{text}")
        arrays = {job_id.partition("_")[0] for job_id in queued if "_" in job_id}
        jobs = {}
        for job_id in self._registered - arrays:
            jobs[job_id] = queued.get(job_id, {"State": "COMPLETED"})
        self._print_states([_describe_state(fields) for fields in jobs.values()])
        for fields in jobs.values():
            if fields["State"] not in ENDED:
                fields["State"] = "RUNNING"
        return jobs

    def _print_states(self, states: list[str]) -> None:
        """Prints how many jobs are in each state, if that has changed."""
        counts = sorted(Counter(states).items())
        line = ", ".join(f"{count} {state}" for state, count in counts)
        if line != self.printed:
            hint = "(squeue --me shows them; Ctrl-C leaves them there)"
            print(f"slurm    {line}  {hint}", flush=True)
            self.printed = line


def _describe_state(fields: dict[str, str]) -> str:
    """Returns `completed`, `running` or `pending (Resources)`."""
    state = fields["State"].lower()
    reason = fields.get("Reason", "None")
    if state != "pending" or reason == "None":
        return state
    return f"{state} ({reason})"


def results_or_failure(job: SlurmJob) -> list[Any]:
    """Returns the results of a job, or a failed JobReturn if the job left no result.

    submitit's own method raises for the first job without a result, and then waits for no other.
    """
    try:
        return _original_results(job)
    except UncompletedJobError:
        text = (
            f"Slurm job {job.job_id} left no result ({job.state}); its output: {job.paths.stderr}"
        )
        print(error_line(text), file=sys.stderr)
        failure = JobReturn(status=JobStatus.FAILED)
        failure.return_value = RuntimeError(job.state)
        return [failure]


def install() -> None:
    """Replaces two attributes of submitit's job class; submitit has no setting for them."""
    SlurmJob.watcher = QueueWatcher(POLL_SECONDS)
    SlurmJob.results = results_or_failure  # type: ignore[method-assign, assignment]
