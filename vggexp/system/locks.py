"""Locks folders between processes. A lock ends with the process that holds it.

Importing this module registers a fork hook (`os.register_at_fork`). The hook has to run in every
forked process, from any caller, so no single caller can register it: see `_release_after_fork`.
"""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vggexp.errors import InUseError
from vggexp.system.files import (
    CHOOSE_ROOT,
    acquire_lock,
    make_dir,
    open_no_follow,
    open_regular,
    os_error_as_resource_error,
)

LOCK = ".lock"
MAX_HOLDER_CHARS = 200
LOCK_ATTEMPTS = 6  # in a tenth of a second: `is_locked` of another process holds it for an instant
RETRY_SECONDS = 0.02  # between two attempts

_LOCKS: set[IO[str]] = set()  # locks that this process holds


def _release_after_fork() -> None:
    """Closes the inherited locks in a forked process, such as a data worker.

    Otherwise the fork would keep the lock when its parent is killed.
    """
    for lock in _LOCKS:
        lock.close()
    _LOCKS.clear()


os.register_at_fork(after_in_child=_release_after_fork)


@contextlib.contextmanager
def lock_download(folder: Path) -> Iterator[None]:
    """Creates the folder, and waits until no other process downloads into it."""
    make_dir(folder)
    with open(folder / ".download.lock", "a", opener=open_no_follow) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def lock_run_dir(folder: Path) -> Iterator[Path]:
    """Creates the folder, and holds its lock in the block.

    Raises:
        InUseError: another process holds the lock.
        ResourceError: the folder cannot be created or locked.
    """
    with os_error_as_resource_error(folder, "made", CHOOSE_ROOT):
        make_dir(folder)
    path = folder / LOCK
    with os_error_as_resource_error(path, "written"):
        lock = open(path, "a+", opener=open_no_follow, errors="replace")
    with lock:
        with os_error_as_resource_error(folder, "locked", CHOOSE_ROOT):
            try:
                acquire_lock(lock, LOCK_ATTEMPTS, RETRY_SECONDS)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read(MAX_HOLDER_CHARS).strip() or "another process"
                raise InUseError(
                    f"{folder}: in use by {holder}; wait for it or choose another run.name"
                ) from None
            os.ftruncate(lock.fileno(), 0)
            os.write(lock.fileno(), f"{socket.gethostname()} pid {os.getpid()}".encode())
        _LOCKS.add(lock)
        try:
            yield folder
        finally:
            _LOCKS.discard(lock)


def is_locked(folder: Path) -> bool:
    """Returns whether a process holds the folder's lock.

    A lock that is no regular file is held by nobody: `lock_run_dir` refuses it.
    """
    try:
        with open(folder / LOCK, opener=open_regular) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL, errno.ELOOP)
