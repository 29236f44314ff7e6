"""What becomes of submitit's jobs. It asks sacct, which needs accounts that many clusters lack, and then waits for a
cancelled job without end. The controller's queue is there on every cluster.

Loaded only where submitit is: Hydra passes over a module whose name begins with `_`.
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
LOOK_SECONDS = (
    30  # less than the five minutes for which a controller remembers a job that has ended
)
WAITS = SlurmJob.results


class Watcher(SlurmInfoWatcher):
    """The state of each job as the controller has it; one that it no longer knows has ended."""

    told = ""

    def _make_command(self) -> list[str] | None:
        return QUEUE if self._registered - self._finished else None

    def read_info(self, string: bytes | str) -> dict[str, dict[str, str]]:
        text = string if isinstance(string, str) else string.decode()
        there = super().read_info(f"JobID|State|NodeList|Reason\n{text}")
        arrays = {job.partition("_")[0] for job in there if "_" in job}
        ours = {job: there.get(job, {"State": "COMPLETED"}) for job in self._registered - arrays}
        self._tell([_words(facts) for facts in ours.values()])
        for facts in ours.values():
            facts["State"] = facts["State"] if facts["State"] in ENDED else "RUNNING"
        return ours

    def _tell(self, states: list[str]) -> None:
        """How many jobs are in which state, where that has changed."""
        told = ", ".join(f"{count} {state}" for state, count in sorted(Counter(states).items()))
        if told != self.told:
            print(
                f"slurm    {told}  (squeue --me shows them; Ctrl-C leaves them there)", flush=True
            )
            self.told = told


def _words(facts: dict[str, str]) -> str:
    """completed, running, pending (Resources)."""
    state = facts["State"].lower()
    reason = facts.get("Reason", "None") if state == "pending" else "None"
    return state if reason == "None" else f"{state} ({reason})"


def results(job: SlurmJob) -> list[Any]:
    """In place of submitit's, which raises for the first job without a result, and then waits for no other."""
    try:
        return WAITS(job)
    except UncompletedJobError:
        log = job.paths.stderr
        print(
            error_line(f"Slurm job {job.job_id} left no result ({job.state}); its output: {log}"),
            file=sys.stderr,
        )
        end = JobReturn(status=JobStatus.FAILED)
        end.return_value = RuntimeError(job.state)
        return [end]


def install() -> None:
    SlurmJob.watcher = Watcher(LOOK_SECONDS)
    SlurmJob.results = results  # type: ignore[method-assign, assignment]  # submitit has no door for it
