"""Forks commands from a process that has imported torch already, does something to them, and compares what they leave.

The process that forks runs no tensor operation itself: autograd does not survive a fork.
"""

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import numpy
import torch.utils.tensorboard._pytorch_graph
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import vggexp.loggers.images  # noqa: F401  (the children find all imported)
from vggexp.__main__ import main
from vggexp.errors import CheckpointError
from vggexp.training import checkpoint

VARYING = ("time/", "images_per_second", "seconds", "peak_")  # keys of times, rates and memory
RUN = Path("outputs/a")
WAIT_SECONDS = 600


class End(NamedTuple):
    code: int  # minus the signal where one ended the process
    out: str
    err: str
    seconds: float


def start(folder: Path, argv: Sequence[str], before: Callable[[], object], tag: str = "") -> int:
    """Forks; the child runs the command in `folder`, after `before`, and leaves out and err there."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name + tag, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), number)
        sys.stdout, sys.stderr = (
            open(number, "w", buffering=1, closefd=False) for number in (1, 2)
        )
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        before()
        code = main(list(argv))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run(
    folder: Path,
    argv: Sequence[str],
    before: Callable[[], object] = lambda: None,
    meanwhile: Callable[[int], object] = lambda pid: None,
) -> End:
    """The command from its start to its end. meanwhile: what is done to its pid."""
    begin = time.monotonic()
    pid = start(folder, argv, before)
    meanwhile(pid)
    status = awaited(pid)
    return End(
        status, (folder / "out").read_text(), (folder / "err").read_text(), time.monotonic() - begin
    )


def awaited(pid: int) -> int:
    end = time.monotonic() + WAIT_SECONDS
    while not (done := os.waitpid(pid, os.WNOHANG))[0]:
        time.sleep(0.002)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return 124
    return os.waitstatus_to_exitcode(done[1])


@cache
def reference(argv: tuple[str, ...]) -> tuple[Path, float]:
    """The undisturbed run's folder, and how long it takes in seconds."""
    folder = Path(mkdtemp())
    end = run(folder, argv)
    if end.code:
        raise RuntimeError(f"the undisturbed run failed: {argv} {end}")
    return folder, end.seconds


def finished(folder: Path, argv: Sequence[str], events: bool = True) -> str:
    """Runs the command as it is; what is wrong then, in comparison with the undisturbed run, empty if nothing is."""
    end = run(folder, argv)
    if end.code or end.err:
        return f"the command again: exit {end.code} {end.err[-300:]}"
    return different(folder, reference(tuple(argv))[0], events)


def different(folder: Path, expected: Path, events: bool = True) -> str:
    """Every run of two folders `outputs`: weights, metrics, result and (if `events`) TensorBoard's points."""
    for result in expected.glob("outputs/*/result.json"):
        there = result.parent
        here = folder / result.parent.relative_to(expected)
        for name in ("result.json", "metrics.jsonl"):
            if stable(here / name) != stable(there / name):
                return f"{name} differs"
        if events and (
            points(here) != points(there) or len(set(points(here))) != len(points(here))
        ):
            return f"events differ: {set(points(here)) ^ set(points(there))}"
        with (
            numpy.load(here / "predictions.npz") as one,
            numpy.load(there / "predictions.npz") as other,
        ):
            if not all(numpy.array_equal(one[key], other[key]) for key in other):
                return "predictions differ"
    left = list(folder.glob("outputs/**/*.tmp"))
    return f"left over: {left}" if left else ""


def stable(path: Path) -> list[dict]:
    """The rows of a JSON file or of JSON lines, without times, rates and memory."""
    text = path.read_text()
    rows = (
        [json.loads(text)]
        if path.suffix == ".json"
        else [json.loads(line) for line in text.splitlines()]
    )
    return [
        {key: value for key, value in row.items() if not key.startswith(VARYING)} for row in rows
    ]


def points(folder: Path) -> list[tuple[str, int]]:
    """Every (tag, step) that TensorBoard shows, sorted."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    kinds = {"scalars": events.Scalars, "images": events.Images}
    return sorted(
        (tag, point.step)
        for kind, read in kinds.items()
        for tag in events.Tags()[kind]
        for point in read(tag)
    )


def good(folder: Path) -> list[int]:
    """The steps of the checkpoints that verify."""
    return [
        int(path.stem)
        for path in sorted((folder / RUN / "checkpoints").glob("*.pt"))
        if verifies(path)
    ]


def verifies(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except CheckpointError:
        return False
    return True


POINTS = [
    (checkpoint._Hashing, "write"),
    (os, "fsync"),
    (os, "replace"),
    (numpy, "savez_compressed"),
    (Path, "unlink"),
]


def disturb(act: Callable[[int, str], None], log: Path | None = None) -> None:
    """Calls act(how many before, name) at every point that writes, a write being half done then."""
    count = 0

    def wrapped(name: str, real: Callable) -> Callable:
        def call(*arguments, **named):
            nonlocal count
            if log is not None:
                with open(log, "a") as file:
                    file.write(f"{name} {arguments[-1] if name == 'replace' else ''}\n")
            if name == "write":
                halves = memoryview(arguments[1]).cast("B")
                real(arguments[0], halves[: len(halves) // 2])
                arguments = (arguments[0], halves[len(halves) // 2 :])
            act(count, name)
            count += 1
            return real(*arguments, **named)

        return call

    for owner, name in POINTS:
        setattr(owner, name, wrapped(name, getattr(owner, name)))


def points_of(argv: Sequence[str]) -> Iterator[str]:
    """The names of an undisturbed run's points, in their order."""
    folder = Path(mkdtemp())
    run(folder, argv, lambda: disturb(lambda number, name: None, folder / "points"))
    yield from (folder / "points").read_text().splitlines()
