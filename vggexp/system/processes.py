"""Runs a call in a forked process, and starts processes of `multiprocessing` from any program.

Whatever ends the forked process ends no other process, and its memory is freed.
"""

import contextlib
import ctypes
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from vggexp.errors import ResourceError
from vggexp.system.files import open_no_follow
from vggexp.system.signals import STOP_SIGNALS, end_at_once

PR_SET_PDEATHSIG = 1  # from linux/prctl.h


def fork_call(
    call: Callable[[], int],
    log: Path | None = None,
    variables: Mapping[str, str] = {},
) -> int:
    """Forks; the child runs `call` and ends with the exit code that `call` returns.

    The caller must not have run an operation of torch on several threads, because such threads do
    not survive a fork. The child gets SIGTERM when its parent dies. The child gets no signal of
    the terminal, because the parent passes such signals on. Until `call` handles stop signals, one
    of them ends the child with exit code 128 plus its number.

    Args:
        log: file that gets what the child prints; None: the parent's streams.
        variables: environment variables of the child.

    Returns:
        The process id of the child.

    Raises:
        ResourceError: the system starts no more processes.
    """
    stop_signals = [getattr(signal, name) for name in STOP_SIGNALS]
    # Blocked, so that no signal is lost between the fork and the child's handlers.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals)
    flush_output()
    parent = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        raise ResourceError(
            f"no process for a job: {error.strerror} (fewer hydra.launcher.jobs)"
        ) from error
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return pid
    code = 1
    try:
        _setup_child(stop_signals, parent, log, variables)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = call()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BaseException:
        traceback.print_exc()
    finally:
        flush_output()
        os._exit(code)


@contextlib.contextmanager
def hidden_main_module() -> Iterator[None]:
    """Starts processes of `multiprocessing` in the block without the program's main module.

    A process that is not forked would run the script of a user again, from its first line, unless
    the script has the guard `if __name__ == "__main__"`. Nothing of vggexp's own processes is
    defined in the main module.
    """
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module


def flush_output() -> None:
    """Flushes stdout and stderr; ignores a stream that is closed, broken or None."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()


def _setup_child(
    stop_signals: list[int],
    parent: int,
    log: Path | None,
    variables: Mapping[str, str],
) -> None:
    """Gives the child a process group, signal handlers, output and variables of its own."""
    os.setpgid(0, 0)
    for signum in stop_signals:
        if signal.getsignal(signum) != signal.SIG_IGN:
            signal.signal(signum, end_at_once)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before prctl
            os._exit(128 + signal.SIGTERM)
    os.environ.update(variables)
    if log is not None:
        _redirect_output(log)


def _redirect_output(log: Path) -> None:
    """Appends stdout and stderr to a file, one line at a time."""
    descriptor = open_no_follow(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if descriptor > 2:
        os.close(descriptor)
    sys.stdout = open(1, "w", buffering=1, closefd=False)
    sys.stderr = open(2, "w", buffering=1, closefd=False)


def poll(pid: int) -> int | None:
    """Returns the exit code of a child process; None while the child runs.

    The code is negative, minus the number of the signal, for a killed child.
    """
    ended_pid, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended_pid else None


def signal_name(code: int) -> str:
    """Returns the name of a signal from a negative exit code: SIGKILL for -9."""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
