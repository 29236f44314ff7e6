"""Turns stop signals into a flag, which the training loop reads between two batches.

The signal handler only sets the flag. A system call that waits for another program or for a disk
never sees the flag, so such a call stands in a block of `interruptible`.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from vggexp.errors import StoppedError, WaitStoppedError

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
POLL_SECONDS = 0.2  # longest sleep between two looks at the flag
GRACE_SECONDS = 2.0  # from a stop signal to the end of a call that waits


class StopFlag:
    """The first stop signal that has arrived, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.at_once = False  # a second Ctrl-C has arrived
        self.resume_hint = "run the same command to continue"
        self._waiting = ""  # what the block of `interruptible` waits for, which is running

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

    @contextmanager
    def interrupt(self, waiting: str) -> Iterator[None]:
        """Ends the block GRACE_SECONDS after a stop signal; see `interruptible`."""
        outer = self._waiting
        self._waiting = waiting
        self.start_timer()
        try:
            yield
        finally:
            self._waiting = outer
            if self.signal is not None and not outer:
                signal.setitimer(signal.ITIMER_REAL, 0)

    def start_timer(self) -> None:
        """Starts the time that the block of `interrupt` still has, if a signal has arrived."""
        if self._waiting and self.signal is not None:
            signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS, GRACE_SECONDS)

    def on_timer(self, signum: int, frame: FrameType | None) -> None:
        if self._waiting and self.signal is not None:
            raise WaitStoppedError(self.signal, self._waiting, self.resume_hint)


# The flags of the blocks of handle_stop_signals that are running.
_FLAGS: list[StopFlag] = []


@contextmanager
def interruptible(waiting: str) -> Iterator[None]:
    """Ends the block, which waits for a disk or for another program, after a stop signal.

    The block has GRACE_SECONDS after the signal, because the wait is over soon in most cases.
    Python repeats a system call that a signal has interrupted, so only an exception ends the call.
    Does nothing outside of handle_stop_signals.

    Args:
        waiting: for the error text, such as `while an image was read`.

    Raises:
        WaitStoppedError: the time is over.
    """
    if not _FLAGS or threading.current_thread() is not threading.main_thread():
        yield
        return
    with _FLAGS[-1].interrupt(waiting):
        yield


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError in the block after `seconds`. Only the main thread can call this."""

    def on_timer(signum: int, frame: FrameType | None) -> None:
        raise TimeoutError

    earlier = signal.signal(signal.SIGALRM, on_timer)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, earlier or signal.SIG_DFL)


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
    block do not handle the signals. In another thread than the main one no signal sets the flag,
    because Python handles signals in the main thread alone.
    """
    stop = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    owner = os.getpid()
    received = list[int]()
    earlier_handlers: dict[int, Any] = {}

    def on_signal(signum: int, frame: FrameType | None) -> Any:
        if os.getpid() != owner:
            return
        if signum == signal.SIGINT and signum in received:
            stop.at_once = True
            raise KeyboardInterrupt
        received.append(signum)
        if stop.signal is None:
            stop.signal = signal.Signals(signum)
            stop.start_timer()

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
    alarm_handler = signal.signal(signal.SIGALRM, stop.on_timer)
    _FLAGS.append(stop)
    try:
        yield stop
    finally:
        _FLAGS.remove(stop)
        signal.signal(signal.SIGALRM, alarm_handler or signal.SIG_DFL)
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
