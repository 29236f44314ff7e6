"""Turns stop signals into a flag, which the training loop reads between two batches.

The signal handler only sets the flag, and acknowledges a Ctrl-C. A system call that waits for
another program or for a disk never sees the flag, so such a call stands in a block of
`interruptible`.
"""

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any, TypeVar

from vggexp.errors import StoppedError, WaitStoppedError
from vggexp.formatting import one_line

STOP_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP")
POLL_SECONDS = 0.2  # longest sleep between two looks at the flag
STOPPING = "vggexp: stopping after this batch; Ctrl-C again to end at once"
STOPPING_JOBS = "vggexp: stopping each job after its batch; Ctrl-C again to end at once"
RESUME_HINT = "run the same command to continue"
STOPPED_AT_ONCE = "stopped at once by a second Ctrl-C"
END = b"\0"  # of the signals that a thread watches
GRACE_SECONDS = 2.0  # from a stop signal to the end of a call that waits

T = TypeVar("T")


class StopFlag:
    """The first stop signal that has arrived, if any."""

    def __init__(self, acknowledgement: str = "") -> None:
        self.signal: signal.Signals | None = None
        self.acknowledgement = acknowledgement  # line for the first Ctrl-C
        self.at_once = False  # a second Ctrl-C has arrived
        self.resume_hint = RESUME_HINT
        self._waiting = ""  # what the block of `interruptible` waits for, which is running

    def check(self, position: str) -> None:
        """Raises StoppedError if a signal has arrived.

        Args:
            position: how far the run has come, for the error text.
        """
        if self.signal is not None:
            raise StoppedError(self.signal, position, self.resume_hint)

    def acknowledge(self) -> None:
        """Prints the acknowledgement once, past Python's buffers, which may be in use.

        A reader that does not read gets nothing: the write would hold up the stop.
        """
        text = self.acknowledgement
        self.acknowledgement = ""
        if not text:
            return
        with suppress(OSError, ValueError, AttributeError):  # stderr is closed, or no file
            descriptor = sys.stderr.fileno()
            poll = select.poll()
            poll.register(descriptor, select.POLLOUT)
            start = "\n" if os.isatty(descriptor) else ""  # ends the line of ^C or of a bar
            if poll.poll(0) == [(descriptor, select.POLLOUT)]:
                os.write(descriptor, f"{start}{text}\n".encode())

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


def call_in_thread(call: Callable[[], T]) -> T:
    """Returns the result of a call, or raises its error; a signal can end the wait for it.

    A long call of a C++ library would keep Python from handling signals in the main thread. After
    a signal the call goes on until the process ends.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


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


@contextmanager
def end_on_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end the process in the block, in which a command imports its modules.

    KeyboardInterrupt would print a traceback there, and wait for ever if stderr is not read.
    """
    handler = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if handler is not signal.default_int_handler or not in_main_thread:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def end_at_once(signum: int, frame: FrameType | None) -> None:
    """Ends a process that has nothing to save yet: the handler of a forked process.

    KeyboardInterrupt is no substitute: omegaconf replaces one that arrives in its blocks by an
    error of its own, so that an interrupted job would count as failed.
    """
    os._exit(128 + signum)


def clear_pending_interrupt() -> None:
    """Makes CPython forget a KeyboardInterrupt that has been handled.

    CPython remembers a KeyboardInterrupt that passed through an `exec` of text, such as the code
    that dataclasses generate at import. A module that runs as `python -m` would then end by
    SIGINT, whatever exit code it has chosen. The next `exec` of text clears the memory.
    """
    exec("")


@contextmanager
def _watch_for_interrupt(stop: StopFlag) -> Iterator[None]:
    """Acknowledges a Ctrl-C in a thread.

    Python calls a handler only between two calls of C functions, and the backward pass of a batch
    is one call, which takes seconds on a processor.
    """
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    earlier = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch() -> None:
        for number in iter(lambda: os.read(read_end, 1), END):
            if number[0] == signal.SIGINT:
                stop.acknowledge()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier)
        os.write(write_end, END)
        thread.join()
        os.close(read_end)
        os.close(write_end)


@contextmanager
def handle_stop_signals(acknowledgement: str = "", long_calls: bool = False) -> Iterator[StopFlag]:
    """Yields a flag that the stop signals set.

    Ignored signals stay ignored. The handler of another library is called after the block,
    because only then everything is saved: submitit's handler hands the job back to Slurm and
    exits. A second Ctrl-C stops at once, with KeyboardInterrupt. Processes that are forked in the
    block do not handle the signals. In another thread than the main one no signal sets the flag,
    because Python handles signals in the main thread alone.

    Args:
        acknowledgement: line for stderr at the first Ctrl-C.
        long_calls: whether the block has calls that take more than a fraction of a second.
    """
    stop = StopFlag(acknowledgement)
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
        if signum == signal.SIGINT:
            stop.acknowledge()
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
        with _watch_for_interrupt(stop) if long_calls else nullcontext():
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
    if not callable(handler) or handler in (signal.default_int_handler, end_at_once):
        return
    try:
        handler(signum, None)
    except Exception as error:  # from submitit: a job that has timed out too often
        name = signal.Signals(signum).name
        print(f"vggexp: {name}: {one_line(error)}", file=sys.stderr)
