"""Resources: disk, permissions, descriptors and memory run short; many processes start one run."""

import errno
import json
import os
import random
import resource
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path

from tools.faults.catalog import (
    CONFIGS,
    SMALLEST,
    Catalog,
    check_error,
    replace_attribute,
)
from tools.faults.server import (
    RUN_DIR,
    compare_with_reference,
    finish,
    intact_checkpoints,
    intercept_writes,
    list_writing_calls,
    run_command,
    start_command,
    wait_for,
)
from vggexp.training import checkpoint_manager
from vggexp.training.loop import TrainState

# No room, no permission, no descriptors

ERRORS = {"full": errno.ENOSPC, "readonly": errno.EROFS}
INJECTED = "injected"  # file that shows that a fault took place


def resource_cases(small: bool) -> Iterable[tuple[str, int]]:
    """Returns the resource and its amount.

    The amount is the index of the first failing writing call (full, readonly), the largest file in
    bytes (limit), the number of free descriptors (descriptors), or the size of the file system in
    KiB (tmpfs, which only root can mount).
    """
    calls = len(list_writing_calls(SMALLEST))
    amounts = {
        "full": range(0, calls, calls // (5 if small else 100)),
        "limit": range(500, 24_000, 6000 if small else 500),
        "readonly": range(0, calls, calls // (3 if small else 20)),
        "descriptors": range(0, 6, 3 if small else 1),
    }
    if os.geteuid() == 0:
        amounts["tmpfs"] = range(16, 160, 48 if small else 8)
    return [(kind, amount) for kind, values in amounts.items() for amount in values]


def check_short_resource(case: tuple[str, int], folder: Path) -> str:
    """Checks that the run ends well or with code 6, and that the same command then finishes it."""
    kind, amount = case

    def fail(index: int, name: str) -> None:
        if index >= amount and name != "unlink":
            raise OSError(ERRORS[kind], os.strerror(ERRORS[kind]))

    def limit() -> None:
        # The check of the disk space would refuse the run at its start.
        replace_attribute(checkpoint_manager, "check_disk_space", lambda *_: None)
        if kind in ERRORS:
            intercept_writes(fail)
        elif kind == "limit":
            resource.setrlimit(resource.RLIMIT_FSIZE, (amount, resource.RLIM_INFINITY))
        elif kind == "descriptors":
            limit_descriptors_after_build(amount)

    outputs = folder / "outputs"
    outputs.mkdir()
    is_mounted = False
    if kind == "tmpfs":
        mount = ["mount", "-t", "tmpfs", "-o", f"size={amount}k", "none", outputs]
        is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
    try:
        result = run_command(folder, SMALLEST, limit)
        if is_mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", outputs], check=True)
        problem = check_error(result.code, result.err, 0, 6)
        if problem:
            return problem
        if kind == "descriptors" and not (folder / INJECTED).exists():
            return "the fault was not injected"
        if list(folder.glob("outputs/**/*.pt")) and not intact_checkpoints(folder):
            return "no checkpoint verifies"
        # A run that could not write its images into the event file has ended well all the same.
        return finish(folder, SMALLEST, events=result.code != 0)
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", outputs], check=True)


def limit_descriptors_after_build(free: int) -> None:
    """Leaves `free` descriptors to the process once the training state is built.

    All modules and data are loaded then. Writes the file INJECTED into the current folder.
    """
    original = TrainState.__init__

    def init_and_limit(*args, **kwargs):
        original(*args, **kwargs)
        Path(INJECTED).touch()
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        descriptor = os.dup(0)
        while descriptor < highest:  # an inherited high descriptor leaves free ones below it
            descriptor = os.dup(0)
        os.close(descriptor)
        _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptor + free, hard_limit))

    # On the class, because a function may be imported by name elsewhere.
    replace_attribute(TrainState, "__init__", init_and_limit)


# Out of memory

MEMORY_RUN = [
    "data=synthetic",
    "data.images=320",
    "data.channels=3",
    "data.size=64",
    "data.batch_size=256",
    "data.classes=4",
    "arch.blocks=[[1,64],[1,32]]",
    "arch.hidden=[16]",
    "train.epochs=1",
    "device.threads=1",
    "device.precision=fp32",
    "run.name=a",
]


def memory_cases(small: bool) -> Iterable[tuple[str, int]]:
    """Returns `arch.norm`, and the free memory in MB before training."""
    amounts = (500, 700) if small else range(300, 1100, 100)
    return [(norm, amount) for norm in ("none", "batch") for amount in amounts]


def check_out_of_memory(case: tuple[str, int], folder: Path) -> str:
    """Checks that the batch is split, or that one line says that the memory is too small."""
    norm, free_mb = case

    def limit() -> None:
        status = Path("/proc/self/status").read_text()
        (size_line,) = [line for line in status.splitlines() if line.startswith("VmSize")]
        used_bytes = int(size_line.split()[1]) * 1024
        limit_bytes = used_bytes + free_mb * 10**6
        resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, resource.RLIM_INFINITY))

    result = run_command(folder, [*MEMORY_RUN, f"arch.norm={norm}"], limit)
    problem = check_error(result.code, result.err, 0, 6)
    if problem:
        return problem
    if result.code and "memory" not in result.err:
        return f"another reason: {result.err}"
    if norm == "batch" and "micro-batches" in result.out:
        return "batch norm was computed in parts"
    return ""


# Many processes


def crowd_cases(small: bool) -> Iterable[tuple[int, int]]:
    """Returns the number of processes, and a seed."""
    return [(8, 0)] if small else [(20, seed) for seed in range(10)]


def check_simultaneous_starts(case: tuple[int, int], folder: Path) -> str:
    """Starts one command in many processes at once.

    Exactly one process trains. For the others, the run is in use (8) or finished (0).
    """
    processes, seed = case
    argv = CONFIGS[seed % len(CONFIGS)]
    read_end, write_end = os.pipe()

    def wait_for_start() -> None:
        os.close(write_end)
        os.read(read_end, 1)  # returns when the parent closes its end
        time.sleep(random.Random(repr((seed, os.getpid()))).uniform(0, 0.5))

    pids = [start_command(folder, argv, wait_for_start, f"-{index}") for index in range(processes)]
    os.close(write_end)
    os.close(read_end)
    codes = [wait_for(pid) for pid in pids]
    trained_by = []
    problems = []
    for index, code in enumerate(codes):
        if "\ntraining " in (folder / f"out-{index}").read_text():
            trained_by.append(index)
        problem = check_error(code, (folder / f"err-{index}").read_text(), 0, 8)
        if problem:
            problems.append(problem)
    attempts = json.loads((folder / RUN_DIR / "env.json").read_text())["attempts"]
    if len(trained_by) != 1 or attempts != 1 or problems:
        return f"trained by {trained_by}, {attempts} attempts, codes {codes}, {problems[:1]}"
    return compare_with_reference(folder, argv)


CATALOGS = {
    "resources": Catalog(
        "disk full, read-only, file size, descriptors", resource_cases, check_short_resource
    ),
    "memory": Catalog("out of memory in training", memory_cases, check_out_of_memory),
    "crowds": Catalog("20 starts of one command at once", crowd_cases, check_simultaneous_starts),
}
