"""Reads the processor's model, abilities and memory, without torch."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")
STATM = Path("/proc/self/statm")  # the second number: resident pages
CGROUPS = Path("/sys/fs/cgroup")  # control groups, such as that of a container
OWN_CGROUPS = Path("/proc/self/cgroup")
LIMIT_FILES = (  # limit and usage in bytes, of version 2 and of version 1
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
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


def available_bytes() -> int | None:
    """Returns the memory that this process may hold; None if the system does not report it.

    This is what the machine and the process's control groups, such as a container's, still have,
    and what this process holds already.
    """
    try:
        rows = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        free = [int(rows["MemAvailable"].split()[0]) * 1024]
        for folder in _control_groups():
            free += _group_free_bytes(folder)
        resident_pages = int(STATM.read_text().split()[1])
    except (OSError, ValueError, KeyError):
        return None
    return max(0, min(free)) + resident_pages * os.sysconf("SC_PAGE_SIZE")


def _control_groups() -> list[Path]:
    """Returns the folders of this process's control group and of the groups around it."""
    folders = [CGROUPS, CGROUPS / "memory"]  # of version 2; of version 1
    for line in OWN_CGROUPS.read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        path = CGROUPS / controllers / group.strip("/")
        folders += [path, *path.parents]
    return folders


def _group_free_bytes(folder: Path) -> list[int]:
    """Returns the bytes below the limit of a control group; an empty list without a limit.

    Pages of files do not count, because the kernel drops them when memory is short.
    """
    for limit_name, usage_name in LIMIT_FILES:
        if not (folder / limit_name).is_file():
            continue
        limit = (folder / limit_name).read_text().strip()
        if limit.isdecimal():
            usage = int((folder / usage_name).read_text())
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            return [int(limit) - usage + int(rows.get("inactive_file", 0))]
    return []


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
