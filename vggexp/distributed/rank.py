"""Reads the rank of this process from the environment of torchrun or srun, without torch."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from vggexp.system.cpu import physical_cores

FIRST_HOST = re.compile(r"([^\[,]+)(?:\[([^\],-]+))?")  # matches node003 of node[003-005,7],other
PORTS = range(20_000, 40_000)  # a step of a Slurm job takes one of them, by its number


class RankInfo(NamedTuple):
    """Position of this process among the processes of a run."""

    rank: int = 0  # rank 0 writes
    size: int = 1  # number of processes
    local_rank: int = 0  # rank on this machine: the index of the GPU


def rank_info() -> RankInfo:
    """Returns the rank that torchrun or srun set; rank 0 of 1 without either."""
    variables = {**slurm_env(os.environ), **os.environ}
    if "RANK" not in variables or "WORLD_SIZE" not in variables:
        return RankInfo()
    return RankInfo(
        rank=int(variables["RANK"]),
        size=int(variables["WORLD_SIZE"]),
        local_rank=int(variables.get("LOCAL_RANK", 0)),
    )


def export_torchrun_env() -> None:
    """Sets the variables of torchrun in a task of srun, so that torch finds them."""
    for name, value in slurm_env(os.environ).items():
        os.environ.setdefault(name, value)


def slurm_env(variables: Mapping[str, str]) -> dict[str, str]:
    """Returns the variables that torchrun would set for a task of srun.

    All ranks meet at the first machine of the step. The cores of a machine are divided among its
    tasks, unless `--cpus-per-task` sets the number of cores.

    Returns:
        An empty dictionary if srun started a single task, or if there is no srun.
    """
    if int(variables.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return {}
    host = FIRST_HOST.match(variables["SLURM_STEP_NODELIST"])
    job = int(variables.get("SLURM_JOB_ID", 0))
    step = int(variables.get("SLURM_STEP_ID", 0))
    port = PORTS[(10 * job + step) % len(PORTS)]
    return {
        "RANK": variables["SLURM_PROCID"],
        "WORLD_SIZE": variables["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": variables["SLURM_LOCALID"],
        "MASTER_ADDR": "".join(host.groups("")) if host else "localhost",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": _cpus_per_task(variables),
    }


def _cpus_per_task(variables: Mapping[str, str]) -> str:
    cpus = variables.get("SLURM_CPUS_PER_TASK")
    if cpus:
        return cpus
    tasks_per_node = variables.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 4(x3),2
    counts = re.findall(r"(?:^|,)(\d+)", tasks_per_node)
    most_tasks = max(map(int, counts))
    return str(max(1, physical_cores() // most_tasks))
