"""Reads the processor's model, abilities and memory, without torch."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # memory limit of a container
TOPOLOGY = "/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"


def cpu_model() -> str:
    """Returns the processor's name, such as `AMD EPYC 9R14`."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def supports_bf16() -> bool:
    """Returns whether the processor multiplies bf16."""
    if not CPUINFO.is_file():
        return False
    flags = set(CPUINFO.read_text().split())
    return not flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def ram_bytes() -> int | None:
    """Returns the memory that this process may use; None if the system does not report it."""
    try:
        installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    except (OSError, ValueError):
        return None
    if limit.isdecimal():
        return min(installed, int(limit))
    return installed


def physical_cores() -> int:
    """Returns the number of cores that this process may use.

    Two hardware threads of one core count once, because they share the core's multipliers.
    """
    if hasattr(os, "sched_getaffinity"):
        cpus = os.sched_getaffinity(0)
    else:
        cpus = set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in cpus:
        siblings = Path(TOPOLOGY.format(cpu=cpu))
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return len(cores)


def default_threads() -> int:
    """Returns the number of threads of one operation.

    OMP_NUM_THREADS if set, because launchers use it to divide a machine. Otherwise the physical
    cores, at most SLURM_CPUS_PER_TASK.
    """
    threads = _positive_variable("OMP_NUM_THREADS")
    if threads is not None:
        return threads
    cores = physical_cores()
    cpus_per_task = _positive_variable("SLURM_CPUS_PER_TASK")
    if cpus_per_task is not None:
        return min(cores, cpus_per_task)
    return cores


def _positive_variable(name: str) -> int | None:
    """Returns an environment variable as a number; None if it is unset, 0 or no number."""
    text = os.environ.get(name, "")
    if text.isdecimal() and int(text):
        return int(text)
    return None
