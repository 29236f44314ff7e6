"""Reads the rank of this process from the environment of torchrun or srun, without torch."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from vggexp.errors import ConfigError
from vggexp.system.cpu import physical_cores

FIRST_HOST = re.compile(r"([^\[,]+)(?:\[([^\],-]+))?")  # matches node003 of node[003-005,7],other
TASKS_PER_NODE = re.compile(r"(\d+)(?:\(x\d+\))?(?:,|$)")  # matches 4(x3), and 2 of 4(x3),2
PORTS = range(20_000, 40_000)  # a step of a Slurm job takes one of them, by its number
MAX_RANKS = 1 << 20
MAX_JOB_ID = 1 << 32


class RankInfo(NamedTuple):
    """Position of this process among the processes of a run."""

    rank: int = 0  # rank 0 writes
    size: int = 1  # number of processes
    local_rank: int = 0  # rank on this machine: the index of the GPU


def rank_info() -> RankInfo:
    """Returns the rank that torchrun or srun set; rank 0 of 1 without either.

    Raises:
        ConfigError: a variable of the launcher is missing or cannot be right.
    """
    variables = {**slurm_env(os.environ), **os.environ}
    if "RANK" not in variables and "WORLD_SIZE" not in variables:
        return RankInfo()
    size = _read_number(variables, "WORLD_SIZE", range(1, MAX_RANKS))
    rank = _read_number(variables, "RANK", range(size))
    local_rank = _read_number({"LOCAL_RANK": "0", **variables}, "LOCAL_RANK", range(size))
    if size > 1:
        _read_number(variables, "MASTER_PORT", range(1, 1 << 16))
        if not variables.get("MASTER_ADDR"):
            raise _wrong_variable(variables, "MASTER_ADDR", "the host of rank 0")
    return RankInfo(rank, size, local_rank)


def _read_number(variables: Mapping[str, str], name: str, allowed: range) -> int:
    text = variables.get(name, "").strip()
    if not (text.isascii() and text.isdecimal()) or int(text) not in allowed:
        raise _wrong_variable(variables, name, f"a whole number of {allowed[0]}..{allowed[-1]}")
    return int(text)


def _wrong_variable(variables: Mapping[str, str], name: str, expected: str) -> ConfigError:
    actual = f"{name}={variables[name]}" if name in variables else f"{name} is not set"
    advice = "start the ranks with torchrun or srun; a single process needs none of "
    names = "SLURM_STEP_*" if name.startswith("SLURM_") else "RANK and WORLD_SIZE"
    return ConfigError(f"{actual}: must be {expected} ({advice}{names})")


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

    Raises:
        ConfigError: a variable of srun is missing or cannot be right.
    """
    if "SLURM_STEP_NUM_TASKS" not in variables:
        return {}
    size = _read_number(variables, "SLURM_STEP_NUM_TASKS", range(1, MAX_RANKS))
    if size == 1:
        return {}
    host = FIRST_HOST.match(variables.get("SLURM_STEP_NODELIST", ""))
    if host is None:
        raise _wrong_variable(variables, "SLURM_STEP_NODELIST", "a list of hosts")
    defaults = {"SLURM_JOB_ID": "0", "SLURM_STEP_ID": "0", **variables}
    job = _read_number(defaults, "SLURM_JOB_ID", range(MAX_JOB_ID))
    step = _read_number(defaults, "SLURM_STEP_ID", range(MAX_JOB_ID))
    return {
        "RANK": str(_read_number(variables, "SLURM_PROCID", range(size))),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(_read_number(variables, "SLURM_LOCALID", range(size))),
        "MASTER_ADDR": "".join(host.groups("")),
        "MASTER_PORT": str(PORTS[(10 * job + step) % len(PORTS)]),
        "OMP_NUM_THREADS": str(_cpus_per_task(variables)),
    }


def _cpus_per_task(variables: Mapping[str, str]) -> int:
    if variables.get("SLURM_CPUS_PER_TASK"):
        return _read_number(variables, "SLURM_CPUS_PER_TASK", range(1, MAX_RANKS))
    tasks = "SLURM_STEP_TASKS_PER_NODE"
    counts = TASKS_PER_NODE.findall(variables.get(tasks, "1"))
    if not counts:
        raise _wrong_variable(variables, tasks, "numbers of tasks, such as 4(x3),2")
    return max(1, physical_cores() // max(1, *map(int, counts)))
