"""Stop signals set a flag that the loop reads between two batches; nothing is done inside a handler."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vggexp.errors import StoppedError

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")


class Stop:
    """Which signal has asked for a stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at_once = False  # a second Ctrl-C has come
        self.advice = "run the same command to continue"

    def check(self, place: str) -> None:
        """Raises StoppedError once a signal has come. place: where the run is, for the reader."""
        if self.signal is not None:
            raise StoppedError(self.signal, place, self.advice)

    def rest(self, seconds: float) -> None:
        """Sleeps until a signal comes, at most."""
        end = time.monotonic() + seconds
        while self.signal is None and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 0.2))


@contextmanager
def stopping() -> Iterator[Stop]:
    """Listens to the stop signals; earlier handlers are called as well, and an ignored signal stays ignored.

    A second Ctrl-C stops at once, by KeyboardInterrupt. Processes forked meanwhile do not listen.
    """
    stop, owner = Stop(), os.getpid()
    earlier: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> Any:
        if os.getpid() != owner:
            return
        if number == signal.SIGINT and stop.signal == signal.SIGINT:
            stop.at_once = True
            raise KeyboardInterrupt
        stop.signal = stop.signal or signal.Signals(number)
        before = earlier[number]
        if callable(before) and before is not signal.default_int_handler:
            before(number, frame)

    for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
        before = signal.getsignal(number)
        if before not in (signal.SIG_IGN, None):
            earlier[number] = before
            signal.signal(number, note)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, earlier)  # a rank is born with them held back until there is a listener
    try:
        yield stop
    finally:
        for number, before in earlier.items():
            signal.signal(number, before)
