"""Turns stop signals into a flag, which the training loop reads between two batches.

The signal handler only sets the flag.
"""

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
POLL_SECONDS = 0.2  # longest sleep between two looks at the flag


class StopFlag:
    """The first stop signal that has arrived, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at_once = False  # a second Ctrl-C has arrived
        self.resume_hint = "run the same command to continue"

    def check(self, position: str) -> None:
        """Raises StoppedError if a signal has arrived.

        Args:
            position: how far the run has come, for the error text.
        """
        if self.signal is not None:
            raise StoppedError(self.signal, position, self.resume_hint)

    def rest(self, seconds: float) -> None:
        """Sleeps for `seconds`, or until a signal arrives."""
        end = time.monotonic() + seconds
        while self.signal is None:
            remaining = end - time.monotonic()
            if remaining <= 0:
                return
            time.sleep(min(remaining, POLL_SECONDS))


def clear_pending_interrupt() -> None:
    """Makes CPython forget a KeyboardInterrupt that has been handled.

    CPython remembers a KeyboardInterrupt that passed through an `exec` of text, such as the code
    that dataclasses generate at import. A module that runs as `python -m` would then end by
    SIGINT, whatever exit code it has chosen. The next `exec` of text clears the memory.
    """
    exec("")


@contextmanager
def handle_stop_signals() -> Iterator[StopFlag]:
    """Yields a flag that the stop signals set.

    Ignored signals stay ignored. The handler of another library is called after the block,
    because only then everything is saved: submitit's handler hands the job back to Slurm and
    exits. A second Ctrl-C stops at once, with KeyboardInterrupt. Processes that are forked in the
    block do not handle the signals.
    """
    stop = StopFlag()
    owner = os.getpid()
    received = list[int]()
    earlier_handlers: dict[int, Any] = {}

    def on_signal(signum: int, frame: FrameType | None) -> Any:
        if os.getpid() != owner:
            return
        if signum == signal.SIGINT and stop.signal == signal.SIGINT:
            stop.at_once = True
            raise KeyboardInterrupt
        stop.signal = stop.signal or signal.Signals(signum)
        received.append(signum)

    for name in STOP_SIGNALS:
        if not hasattr(signal, name):
            continue
        signum = getattr(signal, name)
        handler = signal.getsignal(signum)
        if handler not in (signal.SIG_IGN, None):
            earlier_handlers[signum] = handler
            signal.signal(signum, on_signal)
    # A rank starts with the stop signals blocked until there is a handler.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, earlier_handlers)
    try:
        yield stop
    finally:
        for signum, handler in earlier_handlers.items():
            signal.signal(signum, handler)
        for signum in dict.fromkeys(received):
            _call_handler(signum, earlier_handlers[signum])


def _call_handler(signum: int, handler: Any) -> None:
    """Calls the handler of another library; prints its error, because the run has been saved."""
    if not callable(handler) or handler is signal.default_int_handler:
        return
    try:
        handler(signum, None)
    except Exception as error:  # from submitit: a job that has timed out too often
        print(f"vggexp: {signal.Signals(signum).name}: {error}", file=sys.stderr)
