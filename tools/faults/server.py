"""Forks commands from a process that has already imported torch, and compares what they leave.

The process that forks runs no tensor operation itself, because autograd does not survive a fork.

`python -m tools.faults.server` serves the tests, which then start no Python for a command: it reads
a line [folder, module, arguments, environment] of JSON, runs the command, and prints the line of
its CommandResult.
"""

import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import NamedTuple

import numpy
import torch.utils.tensorboard._pytorch_graph
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

# Imported so that no child has to.
import vggexp.__main__
import vggexp.loggers.images
import vggexp.runner.run  # noqa: F401
from tools.faults.catalog import replace_attribute
from vggexp.config.compose import parse_command
from vggexp.errors import CheckpointError
from vggexp.sweep.expand import compose_run
from vggexp.training import checkpoint

# Keys of times, rates and memory, which differ between equal runs.
VARYING_KEYS = ("time/", "images_per_second", "seconds", "peak_")
RUN_DIR = Path("outputs/a")
TIMEOUT_SECONDS = 600
TIMEOUT_CODE = 124


class CommandResult(NamedTuple):
    """End of a command. The exit code is minus the signal if a signal ended the process."""

    code: int
    out: str
    err: str
    seconds: float


def warm_up() -> None:
    """Composes once, so that no child has to find Hydra's plugins and build its parsers."""
    Image.preinit()
    compose_run(parse_command(["device=cpu"]))


def start_command(
    folder: Path,
    argv: Sequence[str],
    before: Callable[[], object] = lambda: None,
    suffix: str = "",
    module: str = "vggexp.__main__",
) -> int:
    """Forks a process that runs a command; returns its process id.

    Args:
        folder: Working directory; the output goes to the files `out` and `err` there.
        argv: Arguments of the command.
        before: Called in the child before the command.
        suffix: Appended to the names of the output files.
        module: Module whose `main` is the command.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.chdir(folder)
        for descriptor, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name + suffix, os.O_CREAT | os.O_WRONLY | os.O_TRUNC), descriptor)
        sys.stdout = open(1, "w", buffering=1, closefd=False)
        sys.stderr = open(2, "w", buffering=1, closefd=False)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        torch.set_num_threads(1)
        before()
        code = importlib.import_module(module).main(list(argv))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_command(
    folder: Path,
    argv: Sequence[str],
    before: Callable[[], object] = lambda: None,
    meanwhile: Callable[[int], object] = lambda pid: None,
    module: str = "vggexp.__main__",
) -> CommandResult:
    """Runs a command to its end.

    Args:
        before: Called in the child before the command.
        meanwhile: Called in this process with the id of the child.
        module: Module whose `main` is the command.
    """
    begin = time.monotonic()
    pid = start_command(folder, argv, before, module=module)
    meanwhile(pid)
    code = wait_for(pid)
    out = (folder / "out").read_text()
    err = (folder / "err").read_text()
    return CommandResult(code, out, err, time.monotonic() - begin)


def wait_for(pid: int) -> int:
    """Returns the exit code; TIMEOUT_CODE after killing a process that does not end."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end:
        ended_pid, status = os.waitpid(pid, os.WNOHANG)
        if ended_pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return TIMEOUT_CODE


@cache
def reference_run(argv: tuple[str, ...]) -> tuple[Path, float]:
    """Returns the folder of an undisturbed run and its duration in seconds."""
    folder = Path(mkdtemp())
    result = run_command(folder, argv)
    if result.code:
        raise RuntimeError(f"the undisturbed run failed: {argv} {result}")
    return folder, result.seconds


def finish(folder: Path, argv: Sequence[str], events: bool = True) -> str:
    """Repeats the command, which continues the run, and compares it with the undisturbed run.

    Returns:
        What is wrong; empty if nothing is.
    """
    result = run_command(folder, argv)
    if result.code or result.err:
        return f"the command again: exit {result.code} {result.err[-300:]}"
    return compare_with_reference(folder, argv, events)


def compare_with_reference(folder: Path, argv: Sequence[str], events: bool = True) -> str:
    """Compares every run in `outputs` with the undisturbed run, bit for bit.

    Args:
        events: Whether to compare the points of TensorBoard too.

    Returns:
        The first difference; empty if there is none.
    """
    reference, _ = reference_run(tuple(argv))
    for expected in reference.glob("outputs/*"):
        if (expected / "result.json").exists():
            difference = _compare_runs(folder / expected.relative_to(reference), expected, events)
            if difference:
                return difference
    temporary_files = list(folder.glob("outputs/**/*.tmp"))
    return f"left over: {temporary_files}" if temporary_files else ""


def _compare_runs(actual: Path, expected: Path, events: bool) -> str:
    for name in ("result.json", "metrics.jsonl", "steps.jsonl"):
        if _stable_rows(actual / name) != _stable_rows(expected / name):
            return f"{name} differs"
    if events:
        actual_points = tensorboard_points(actual)
        expected_points = tensorboard_points(expected)
        if actual_points != expected_points:
            return f"events differ: {set(actual_points) ^ set(expected_points)}"
        if len(set(actual_points)) != len(actual_points):
            return "a TensorBoard point appears twice"
    if not (expected / "predictions.npz").exists():  # of a paused run
        return ""
    with (
        numpy.load(actual / "predictions.npz") as actual_arrays,
        numpy.load(expected / "predictions.npz") as expected_arrays,
    ):
        for key, array in expected_arrays.items():
            if not numpy.array_equal(actual_arrays[key], array):
                return "predictions differ"
    return ""


def _stable_rows(path: Path) -> list[dict]:
    """Returns the rows of a JSON or JSON lines file, without times, rates and memory."""
    text = path.read_text()
    texts = [text] if path.suffix == ".json" else text.splitlines()
    rows = []
    for text in texts:
        row = json.loads(text)
        rows.append({key: row[key] for key in row if not key.startswith(VARYING_KEYS)})
    return rows


def tensorboard_points(folder: Path) -> list[tuple[str, int]]:
    """Returns every (tag, step) that TensorBoard shows, sorted."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    accumulator.Reload()
    points = []
    for tag in accumulator.Tags()["scalars"]:
        points += [(tag, event.step) for event in accumulator.Scalars(tag)]
    for tag in accumulator.Tags()["images"]:
        points += [(tag, event.step) for event in accumulator.Images(tag)]
    return sorted(points)


def intact_checkpoints(folder: Path) -> list[Path]:
    """Returns the checkpoints of the run in RUN_DIR that verify."""
    paths = sorted((folder / RUN_DIR / "checkpoints").glob("*.pt"))
    return [path for path in paths if _verifies(path)]


def _verifies(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except CheckpointError:
        return False
    return True


WRITING_CALLS = [  # the calls by which a run writes
    (checkpoint._HashingFile, "write"),
    (os, "fsync"),
    (os, "replace"),
    (numpy, "savez_compressed"),
    (Path, "unlink"),
]


def intercept_writes(act: Callable[[int, str], None], log: Path | None = None) -> None:
    """Calls act(index, name) before each writing call, and in the middle of a `write`.

    Args:
        act: `index` counts the writing calls from 0.
        log: Receives one line for each writing call.
    """
    count = 0

    def intercept(name: str, original: Callable) -> Callable:
        def call(*args, **kwargs):
            nonlocal count
            if log is not None:
                target = args[-1] if name == "replace" else ""
                with open(log, "a") as file:
                    file.write(f"{name} {target}\n")
            if name == "write":
                stream, content = args
                view = memoryview(content).cast("B")
                original(stream, view[: len(view) // 2])
                args = (stream, view[len(view) // 2 :])
            act(count, name)
            count += 1
            return original(*args, **kwargs)

        return call

    for owner, name in WRITING_CALLS:
        replace_attribute(owner, name, intercept(name, getattr(owner, name)))


def list_writing_calls(argv: Sequence[str]) -> list[str]:
    """Returns the names of the writing calls of an undisturbed run, in order."""
    folder = Path(mkdtemp())
    log = folder / "calls"
    run_command(folder, argv, lambda: intercept_writes(lambda index, name: None, log))
    return log.read_text().splitlines()


def serve() -> None:
    """Runs the commands of standard input, one after another."""
    warm_up()
    for line in sys.stdin:
        folder, module, argv, variables = json.loads(line)

        def replace_environment(variables: dict[str, str] = variables) -> None:
            os.environ.clear()
            os.environ.update(variables)

        result = run_command(Path(folder), argv, replace_environment, module=module)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    serve()
