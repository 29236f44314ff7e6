"""SIGKILL at random times, at each writing call and at each system call; stop signals."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import vggexp.runner.build
from tests.conftest import full_pipe
from tools.faults.catalog import (
    CONFIGS,
    SMALLEST,
    Catalog,
    check_error,
    kill_after,
    replace_attribute,
    seeds,
    wait_until,
)
from tools.faults.server import (
    finish,
    intact_checkpoints,
    intercept_writes,
    list_writing_calls,
    reference_run,
    run_command,
    start_command,
    wait_for,
)

# SIGKILL at random times


def check_random_kills(seed: int, folder: Path) -> str:
    draws = random.Random(seed)
    argv = CONFIGS[seed % len(CONFIGS)]
    _, seconds = reference_run(tuple(argv))
    for _ in range(3):
        workers = f"data.workers={draws.randrange(4)}"  # not part of the identity of a run
        kill = kill_after(draws.uniform(0, seconds), signal.SIGKILL)
        if run_command(folder, [*argv, workers], meanwhile=kill).code == 0:
            break
    return finish(folder, argv)


# SIGKILL at each writing call

KEEP_VALUES = ("last", "weights", "all")


def writing_call_cases(small: bool) -> Iterable[tuple[str, int, bool]]:
    """Returns `train.keep`, the index of the call, and whether a checkpoint exists before it."""
    for keep in KEEP_VALUES:
        names = list_writing_calls([*SMALLEST, f"train.keep={keep}"])
        checkpoints = [
            index
            for index, name in enumerate(names)
            if name.startswith("replace") and ".pt" in name
        ]
        calls = [index for index, name in enumerate(names) if not name.startswith("write")]
        if keep == "last":  # with every write of the second checkpoint
            calls = sorted({*calls, *range(checkpoints[0], checkpoints[1] + 1)})
        if small:
            calls = random.Random(keep).sample(calls, 2)
        for index in calls:
            yield keep, index, index > checkpoints[0]


def check_kill_at_writing_call(case: tuple[str, int, bool], folder: Path) -> str:
    keep, killed_index, has_checkpoint = case

    def kill(index: int, name: str) -> None:
        if index == killed_index:
            os.kill(os.getpid(), signal.SIGKILL)

    argv = [*SMALLEST, f"train.keep={keep}"]
    result = run_command(folder, argv, lambda: intercept_writes(kill))
    if result.code != -signal.SIGKILL:
        return f"not killed: exit {result.code} {result.err}"
    if has_checkpoint and not intact_checkpoints(folder):
        return "no checkpoint verifies"
    return finish(folder, argv)


# SIGKILL at each system call that writes

SYSTEM_CALLS = ("fsync", "rename", "write")
SECOND_CHECKPOINT = "outputs/a/checkpoints/00000002.pt"


def system_call_cases(small: bool) -> Iterable[tuple[str, int]]:
    """Returns each fsync and rename of a run, and each write of its second checkpoint.

    There are no cases if strace is missing or tracing is not allowed.
    """
    for call in SYSTEM_CALLS:
        folder = Path(mkdtemp())
        if run_traced(folder, call) != 0:
            print("syscalls: no cases, strace is missing or may not trace here", file=sys.stderr)
            return
        lines = (folder / "trace").read_text().splitlines()
        count = sum(f"{call}(" in line for line in lines)
        indices: Iterable[int] = range(1, count + 1)  # strace counts from 1
        if small:
            indices = random.Random(call).sample(range(1, count + 1), 2)
        for index in indices:
            yield call, index


def check_kill_at_system_call(case: tuple[str, int], folder: Path) -> str:
    call, index = case
    code = run_traced(folder, call, "-e", f"inject={call}:signal=KILL:when={index}")
    if code != -signal.SIGKILL:
        return f"not killed: exit {code}"
    if call == "write" and not intact_checkpoints(folder):
        return "no checkpoint verifies"
    return finish(folder, SMALLEST)


def run_traced(folder: Path, call: str, *inject: str) -> int:
    """Runs SMALLEST under strace from its first line on.

    Returns:
        The exit code of the run; 127 if the run cannot be traced.
    """
    only_path = []
    if call == "write":
        only_path = ["-P", f"{folder}/{SECOND_CHECKPOINT}.tmp"]

    def wait_for_tracer() -> None:
        status = Path("/proc/self/status")
        wait_until(lambda: "TracerPid:\t0" not in status.read_text(), 10)

    pid = start_command(folder, SMALLEST, wait_for_tracer)
    command = ["strace", "-f", "-q", "-o", folder / "trace", "-e", f"trace={call}"]
    command += [*only_path, *inject, "-p", str(pid)]
    try:
        tracer = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    except FileNotFoundError:
        wait_for(pid)
        return 127
    code = wait_for(pid)
    if tracer.wait() != 0 and code == 0:
        return 127
    return code


# Stop signals

SLOW_SECONDS = {"once": 0.02, "twice": 0.3}  # of a batch in these situations
SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


def signal_cases(small: bool) -> Iterable[tuple[str, str, int]]:
    """Returns the situation, the signal and a seed."""
    situations = {
        "once": SIGNALS,
        "chained": SIGNALS[2:],
        "ignored": ("SIGHUP",),
        "unread": ("SIGTERM",),
        "twice": ("SIGINT",),
        "sweep": ("SIGINT",),
    }
    for situation, names in situations.items():
        repeats = 1
        if small:
            names = names[:2]
        else:
            repeats = 20 if situation == "once" else 4
        yield from itertools.product([situation], names, range(repeats))


def check_signal(case: tuple[str, str, int], folder: Path) -> str:
    """Checks the exit code, the line on stderr, and the checkpoint of a stopped run."""
    situation, name, seed = case
    signum = getattr(signal, name)
    draws = random.Random(repr(case))
    pause = draws.uniform(0, 0.2)
    argv = SMALLEST  # "once" interrupts every part of the training state
    if situation == "once":
        argv = CONFIGS[seed % len(CONFIGS)]
    elif situation == "sweep":
        argv = ["-m", *(word for word in SMALLEST if word != "run.name=a")]
        argv.append("optimizer.lr=0.001,0.002,0.003")

    def before() -> None:
        slow_down_batches(SLOW_SECONDS.get(situation, 0.1))
        signal.signal(signum, earlier_handler(situation, signum))
        if situation == "unread":
            os.dup2(full_pipe()[1], 1)

    def send(pid: int) -> None:
        wait_until(lambda: list(folder.glob("outputs/*/result.json")))
        if situation == "twice":
            wait_until(lambda: list(folder.glob("outputs/*/checkpoints/*.pt")))
        time.sleep(pause)
        os.kill(pid, signum)
        if situation == "twice":
            time.sleep(0.05)
            os.kill(pid, signum)

    result = run_command(folder, argv, before, send)
    problem = check_error(result.code, result.err, 0 if situation == "ignored" else 128 + signum)
    if problem:
        return problem
    if situation == "chained" and not (folder / "called").exists():
        return "the earlier handler was not called"
    if not list(folder.glob("outputs/*/checkpoints/*.pt")):
        return "no checkpoint"
    if situation == "sweep" and len(list(folder.glob("outputs/*/checkpoints"))) != 1:
        return "another job started"
    return finish(folder, argv)


def earlier_handler(situation: str, signum: int) -> Any:
    """Returns the handler that is installed before the run starts."""
    if situation == "ignored":
        return signal.SIG_IGN
    if situation == "chained":
        return lambda *_: Path("called").touch()
    if situation == "once" and signum != signal.SIGINT:
        return signal.SIG_DFL
    return signal.default_int_handler


def slow_down_batches(seconds: float) -> None:
    """Makes every batch take longer, so that a signal arrives during training."""
    original = vggexp.runner.build.forward_backward

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return original(*args, **kwargs)

    replace_attribute(vggexp.runner.build, "forward_backward", slow)


CATALOGS = {
    "kills": Catalog("SIGKILL at up to three random times", seeds(3, 200), check_random_kills),
    "points": Catalog(
        "SIGKILL at each write, fsync, rename and unlink",
        writing_call_cases,
        check_kill_at_writing_call,
    ),
    "signals": Catalog("stop signals", signal_cases, check_signal),
    "syscalls": Catalog(
        "SIGKILL at each fsync, rename and write that strace sees",
        system_call_cases,
        check_kill_at_system_call,
    ),
}
