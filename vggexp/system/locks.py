import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vggexp.errors import InUseError, ResourceError


@contextlib.contextmanager
def lock_download(folder: Path) -> Iterator[None]:
    """Makes the folder and waits until no other process works in it; the lock dies with its process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".download.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


LOCK_ATTEMPTS = 5  # of taking a lock, in a tenth of a second


_LOCKS: set[IO[str]] = set()  # locks of this process


def _release_after_fork() -> None:
    """In a forked process, such as a data worker, which would keep the lock when its parent is killed."""
    for lock in _LOCKS:
        lock.close()
    _LOCKS.clear()


os.register_at_fork(after_in_child=_release_after_fork)


@contextlib.contextmanager
def lock_run_dir(folder: Path) -> Iterator[Path]:
    """Makes the folder and holds its lock; the lock dies with the process. Raises InUseError, ResourceError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+")  # held until the run ends
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be made: {error.strerror} (choose another run.root)"
        ) from error
    with lock:
        try:
            _lock(lock)
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{socket.gethostname()} pid {os.getpid()}".encode())
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read().strip() or "another process"
            raise InUseError(
                f"{folder}: in use by {holder}; wait for it or choose another run.name"
            ) from None
        except OSError as error:
            raise ResourceError(
                f"{folder}: cannot be locked: {error.strerror} (choose another run.root)"
            ) from error
        _LOCKS.add(lock)
        try:
            yield folder
        finally:
            _LOCKS.discard(lock)


def _lock(lock: IO[str]) -> None:
    """Raises BlockingIOError where another process holds it. `in_use` may, but only for an instant."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.02)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    try:
        with open(folder / ".lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True
