"""What the processor is and can do, and its memory, told without torch."""

import os
import platform
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


def cpu_model() -> str:
    lines = CPUINFO.read_text().splitlines() if CPUINFO.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def supports_bf16() -> bool:
    words = set(CPUINFO.read_text().split()) if CPUINFO.is_file() else set()
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


def ram_bytes() -> int | None:
    """What this process may use, None where the system does not say."""
    try:
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else ""
    except (OSError, ValueError):
        return None
    return min(there, int(limit)) if limit.isdecimal() else there


def physical_cores() -> int:
    """Cores this process may use: two threads of one core share its multipliers."""
    usable = (
        os.sched_getaffinity(0)
        if hasattr(os, "sched_getaffinity")
        else set(range(os.cpu_count() or 1))
    )
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text().strip() if siblings.is_file() else str(cpu))
    return len(cores)


def default_threads() -> int:
    """Of one operation: OMP_NUM_THREADS, by which launchers divide a machine, else the cores (of a Slurm job, its)."""
    given, of_job = (
        os.environ.get(name, "") for name in ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK")
    )
    if given.isdecimal() and int(given):
        return int(given)
    cores = physical_cores()
    return min(cores, int(of_job)) if of_job.isdecimal() and int(of_job) else cores
