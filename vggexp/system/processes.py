"""A call in a process of its own: whatever ends it ends nothing else, and what it took is given back."""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from vggexp.errors import ResourceError
from vggexp.system.signals import STOP_SIGNALS

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def fork_call(
    call: Callable[[], int], log: Path | None = None, variables: Mapping[str, str] = {}
) -> int:
    """Forks; the child runs `call`, ends with the exit code it returns, and writes what it prints to `log`.

    The caller must not have run an operation of torch on several threads: those do not survive a fork. A child gets
    SIGTERM when its parent dies, and no signal of the terminal: those are the parent's to pass on.
    Raises ResourceError.
    """
    numbers = [getattr(signal, name) for name in STOP_SIGNALS]
    earlier = signal.pthread_sigmask(
        signal.SIG_BLOCK, numbers
    )  # none is lost between fork and handlers
    flush_output()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        raise ResourceError(
            f"no process for a job: {error.strerror} (fewer hydra.launcher.jobs)"
        ) from error
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        return pid
    code = 1
    try:
        _setup_child(numbers, parent, log, variables)
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier)
        code = call()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        flush_output()
        os._exit(code)


def flush_output() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(
            OSError, ValueError, AttributeError
        ):  # its reader has gone; it is closed; None
            stream.flush()


def _setup_child(
    numbers: list[int], parent: int, log: Path | None, variables: Mapping[str, str]
) -> None:
    """In the child: its own group, handlers, output and variables."""
    os.setpgid(0, 0)
    for number in numbers:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(
                number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            )
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before that
            os._exit(128 + signal.SIGTERM)
    os.environ.update(variables)
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for number in (1, 2):
            os.dup2(file, number)
        if file > 2:
            os.close(file)
        sys.stdout, sys.stderr = (
            open(number, "w", buffering=1, closefd=False) for number in (1, 2)
        )


def poll(pid: int) -> int | None:
    """The exit code of a process started here, minus the signal that killed it; None while it runs."""
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def signal_name(code: int) -> str:
    """SIGKILL, for the exit code -9."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
