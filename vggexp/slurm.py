"""What a job of a sweep asks of Slurm's controller."""

import os
import subprocess


def requeue_if_preempted() -> None:
    """Puts this job of submitit into the queue again, where it was preempted: Slurm itself does so only for a job that
    it had to kill, and one that saves and ends in its time of grace would be lost. A cancelled job stays cancelled.
    """
    if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        return
    job, show = _number(), ["scontrol", "--oneliner", "show", "job"]
    words = subprocess.run([*show, job], capture_output=True, text=True).stdout.split()
    facts = dict(word.partition("=")[::2] for word in words)
    if facts.get("JobState") == "RUNNING" and facts.get("PreemptTime", "None") != "None":
        subprocess.run(["scontrol", "requeue", job])


def _number() -> str:
    """7_0: the bare number of an array's last job stands for the whole array."""
    array, index = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
    return f"{array}_{index}" if array else os.environ.get("SLURM_JOB_ID", "")
