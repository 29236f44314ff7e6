"""Parts that the catalogs share: their type, the commands of small runs, and helpers."""

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import TINY
from vggexp.system.signals import STOPPING, STOPPING_JOBS


class Catalog(NamedTuple):
    """A kind of fault with its cases.

    Attributes:
        title: Name of the row in benchmarks/faults.md.
        cases: Returns the cases. The argument is true for the part that runs with the tests.
        check: Runs a case in an empty folder. Returns what went wrong, empty if nothing did.
    """

    title: str
    cases: Callable[[bool], Iterable[Any]]
    check: Callable[[Any, Path], str]


SMALLEST = [
    "data=synthetic",
    "data.images=24",
    "data.classes=2",
    "data.batch_size=8",
    "data.size=8",
    "arch.blocks=[[1,4]]",
    "arch.hidden=[8]",
    "train.epochs=2",
    "device.threads=1",
    "train.checkpoint_minutes=0",
    "run.name=a",
]

_FOUR_EPOCHS = [
    *TINY,
    "run.name=a",
    "augment=strong",
    "train.epochs=4",
    "train.checkpoint_minutes=0.0003",
]
CONFIGS = [  # runs that together use every part of the training state
    [
        *_FOUR_EPOCHS,
        "arch.norm=batch",
        "train.ema=0.9",
        "scheduler=plateau",
        "scheduler.patience=0",
        "train.test_weights=best",
    ],
    [
        *_FOUR_EPOCHS,
        "optimizer=adam",
        "optimizer.lr=0.001",
        "scheduler=cosine",
        "scheduler.warmup_epochs=0.5",
    ],
    [
        *_FOUR_EPOCHS,
        "arch.norm=batch",
        "train.accumulate=2",
        "train.clip_norm=1",
        "train.label_smoothing=0.1",
        "train.ema=0.8",
    ],
]


def seeds(small_count: int, full_count: int) -> Callable[[bool], range]:
    """Returns the cases of a catalog whose cases are seeds."""
    return lambda small: range(small_count if small else full_count)


def replace_attribute(owner: Any, name: str, value: Any) -> None:
    """Sets an existing attribute.

    Raises:
        AttributeError: The owner has no such attribute. Without this check, a fault would no
            longer be injected after a renaming, and every case would count as survived.
    """
    getattr(owner, name)
    setattr(owner, name, value)


def kill_after(seconds: float, signum: int) -> Callable[[int], None]:
    """Returns a function that waits and then sends a signal to a process."""

    def send(pid: int) -> None:
        time.sleep(seconds)
        os.kill(pid, signum)

    return send


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    """Returns as soon as the condition holds, or after `seconds`."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.002)


def check_error(code: int, stderr: str, *allowed_codes: int) -> str:
    """Returns what is wrong with the end of a command.

    An allowed exit code other than 0 comes with exactly one line on stderr, and 0 with none. Before
    it, Ctrl-C may be acknowledged.
    """
    lines = [line for line in stderr.splitlines() if line not in (STOPPING, STOPPING_JOBS)]
    if code in allowed_codes and len(lines) == bool(code):
        return ""
    allowed = " or ".join(map(str, allowed_codes))
    return f"exit {code}, expected {allowed} with one line on stderr: {stderr[-300:]}"
