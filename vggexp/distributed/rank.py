"""Which of several processes this is, as torchrun or srun has told it in the environment. Needs no torch."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from vggexp.system.cpu import physical_cores

FIRST_HOST = re.compile(r"([^\[,]+)(?:\[([^\],-]+))?")  # of node[003-005,7],other
PORTS = range(20_000, 40_000)  # of which a job of Slurm takes one by its number


class RankInfo(NamedTuple):
    """rank: of all `size` processes, 0 is the one that writes. local_rank: on this machine; the number of its GPU."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0


def rank_info() -> RankInfo:
    given = {**slurm_env(os.environ), **os.environ}
    if not {"RANK", "WORLD_SIZE"} <= given.keys():
        return RankInfo()
    return RankInfo(int(given["RANK"]), int(given["WORLD_SIZE"]), int(given.get("LOCAL_RANK", 0)))


def export_torchrun_env() -> None:
    """What srun has told, in the words of torchrun, so that torch too finds it."""
    for key, value in slurm_env(os.environ).items():
        os.environ.setdefault(key, value)


def slurm_env(given: Mapping[str, str]) -> dict[str, str]:
    """The variables that torchrun would set for a task of srun; none where srun has started a single one.

    The first machine of the step is the one that all ranks meet at. The cores of a machine are divided among its tasks
    unless `--cpus-per-task` says how many each has.
    """
    if int(given.get("SLURM_STEP_NUM_TASKS", 1)) == 1:
        return {}
    host = FIRST_HOST.match(given["SLURM_STEP_NODELIST"])
    tasks = max(map(int, re.findall(r"(?:^|,)(\d+)", given.get("SLURM_STEP_TASKS_PER_NODE", "1"))))
    number = 10 * int(given.get("SLURM_JOB_ID", 0)) + int(given.get("SLURM_STEP_ID", 0))
    return {
        "RANK": given["SLURM_PROCID"],
        "WORLD_SIZE": given["SLURM_STEP_NUM_TASKS"],
        "LOCAL_RANK": given["SLURM_LOCALID"],
        "MASTER_ADDR": "".join(host.groups("")) if host else "localhost",
        "MASTER_PORT": str(PORTS[number % len(PORTS)]),
        "OMP_NUM_THREADS": given.get("SLURM_CPUS_PER_TASK")
        or str(max(1, physical_cores() // tasks)),
    }
