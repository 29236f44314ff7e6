"""Stop signals set a flag that the loop reads between two batches; nothing is done inside a handler."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vggexp.errors import StoppedError

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


class StopFlag:
    """Which signal has asked for a stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at_once = False  # a second Ctrl-C has come
        self.resume_hint = "run the same command to continue"

    def check(self, place: str) -> None:
        """Raises StoppedError once a signal has come. place: where the run is, for the reader."""
        if self.signal is not None:
            raise StoppedError(self.signal, place, self.resume_hint)

    def rest(self, seconds: float) -> None:
        """Sleeps until a signal comes, at most."""
        end = time.monotonic() + seconds
        while self.signal is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))


def clear_pending_interrupt() -> None:
    """Says that a KeyboardInterrupt has been dealt with.

    CPython remembers one that came through an `exec` of text, as dataclasses do at import, and where it runs a module
    (`python -m`) ends it by SIGINT, whatever exit code it has chosen. The next such `exec` makes it forget.
    """
    exec("")


@contextmanager
def handle_stop_signals() -> Iterator[StopFlag]:
    """Listens to the stop signals; an ignored signal stays ignored, an earlier handler is called at the end.

    Only by then all is saved: submitit's handler hands the job back to Slurm and exits. A second Ctrl-C stops at once,
    by KeyboardInterrupt. Processes forked meanwhile do not listen.
    """
    stop = StopFlag()
    owner = os.getpid()
    come = list[int]()
    earlier: dict[int, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> Any:
        if os.getpid() != owner:
            return
        if number == signal.SIGINT and stop.signal == signal.SIGINT:
            stop.at_once = True
            raise KeyboardInterrupt
        stop.signal = stop.signal or signal.Signals(number)
        come.append(number)

    for number in (getattr(signal, name) for name in STOP_SIGNALS if hasattr(signal, name)):
        before = signal.getsignal(number)
        if before not in (signal.SIG_IGN, None):
            earlier[number] = before
            signal.signal(number, on_signal)
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, earlier
    )  # a rank is born with them held back until there is a listener
    try:
        yield stop
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)
        for number in dict.fromkeys(come):
            _call_earlier_handler(number, earlier[number])


def _call_earlier_handler(number: int, handler: Any) -> None:
    """What the handler refuses is told: the run has saved, and ends as stopped."""
    if not callable(handler) or handler is signal.default_int_handler:
        return
    try:
        handler(number, None)
    except Exception as error:  # submitit: a job that has timed out too often
        print(f"vggexp: {signal.Signals(number).name}: {error}", file=sys.stderr)
