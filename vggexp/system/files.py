"""Opens, writes and replaces files that other people may have prepared.

Reading never waits and never ends in a device. Writing never follows a link, leaves a file that
exists completely or not at all, and gives others no right that the folder does not give them.
"""

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vggexp.errors import ConfigError, ResourceError

IS_LINK = "a link, and no file is written through links; remove it"
NOT_REGULAR = "not a regular file; remove it"
CHOOSE_ROOT = "choose another run.root"  # a hint
MAX_WAIT_SECONDS = 10.0  # for another writer; a write of one file takes far less
RETRY_SECONDS = 0.005  # between two attempts
SHARED_BITS = stat.S_IWGRP | stat.S_IWOTH
RESOURCE_ERRORS = (  # nothing is wrong with the file itself
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
)


def cache_dir() -> Path | None:
    """Returns the folder of vggexp in the user's cache; None if this user has no home folder."""
    root = os.environ.get("XDG_CACHE_HOME")
    if root:
        return Path(root) / "vggexp"
    home = os.path.expanduser("~")
    return Path(home) / ".cache" / "vggexp" if home != "~" else None


@contextlib.contextmanager
def os_error_as_resource_error(path: object, action: str, hint: str = "") -> Iterator[None]:
    """Raises ResourceError for what the system refuses in the block.

    Args:
        path: what the error names; also the key and the value of a path.
        action: what the block does with the path, such as `written`.
        hint: what the user can do.
    """
    try:
        yield
    except OSError as error:
        advice = f" ({hint})" if hint else ""
        reason = f"{error.strerror or error}{advice}"
        raise ResourceError(f"{path}: cannot be {action}: {reason}") from error


def check_output_file(option: str, path: Path) -> None:
    """Checks before long work that its result can be written.

    Args:
        option: the flag that names the file, such as `--out`.

    Raises:
        ConfigError: there is no such directory, or the path is one itself.
        ResourceError: the directory is not writable.
    """
    if path.is_dir():
        raise ConfigError(f"{option} {path}: is a directory; give a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{option} {path}: no such directory: {path.parent}")
    if not os.access(path.parent, os.W_OK):
        raise ResourceError(f"{option} {path}: {path.parent} is not writable")


def missing_resource(path: object, error: OSError) -> ResourceError | None:
    """Returns the error of a permission or a resource that a reader lacks.

    Returns:
        None if the file itself is the problem, such as a path that is a folder.
    """
    if error.errno not in RESOURCE_ERRORS:
        return None
    return ResourceError(f"{path}: cannot be read: {error.strerror}")


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY) -> int:
    """Opens a regular file to read it; also an `opener` for the builtin `open`.

    Raises:
        OSError: also for a FIFO, a device and a folder, which have no end or no content.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK)  # does not wait for a FIFO's writer
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return descriptor


def read_file(path: Path, max_bytes: int) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: also if the file is larger than `max_bytes`; nothing is read then.
    """
    too_large = OSError(errno.EFBIG, f"larger than {max_bytes >> 20} MiB", str(path))
    with open(path, "rb", opener=open_regular) as file:
        if os.fstat(file.fileno()).st_size > max_bytes:
            raise too_large
        # Not st_size: a file of /proc has none, and perhaps no end, or nothing yet (None).
        content = file.read(max_bytes + 1) or b""
    if len(content) > max_bytes:
        raise too_large
    return content


def read_tail(path: Path, max_bytes: int, start: int = 0) -> list[str]:
    """Returns the last lines of a text file, of which the first may be cut.

    Args:
        path: the file. The list is empty if the file cannot be read.
        max_bytes: how much of the end is read.
        start: first byte that may be read.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            file.seek(max(start, os.fstat(file.fileno()).st_size - max_bytes))
            return file.read(max_bytes).decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def open_no_follow(path: str | os.PathLike[str], flags: int) -> int:
    """Opens a regular file to write it: an `opener` for the builtin `open`.

    Group and others get the right to write only in a folder that is shared with them.

    Raises:
        OSError: also for a link, which could lead to any file of the user, a FIFO and a device.
    """
    mode = 0o644 | _shared_bits(os.path.dirname(path) or ".")
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, IS_LINK, os.fspath(path)) from error
        if error.errno == errno.ENXIO:  # a FIFO without a reader
            raise OSError(errno.EINVAL, NOT_REGULAR, os.fspath(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, NOT_REGULAR, os.fspath(path))
    return descriptor


def _shared_bits(folder: str | os.PathLike[str]) -> int:
    """Returns the rights to write that a folder gives to group and others on purpose.

    A sticky folder, such as /tmp, shares only the names in it.
    """
    mode = os.stat(folder).st_mode
    return 0 if mode & stat.S_ISVTX else mode & SHARED_BITS


@contextlib.contextmanager
def limit_umask(folder: Path) -> Iterator[None]:
    """Lets libraries, and processes that the block starts, give others no right to write.

    Except those rights that the folder gives on purpose: see `open_no_follow`.
    """
    removed = SHARED_BITS & ~_shared_bits(folder)
    umask = os.umask(0o022)
    os.umask(umask | removed)
    try:
        yield
    finally:
        os.umask(umask)


def folder_problem(path: str | os.PathLike[str]) -> str:
    """Returns why a path is no folder; "" if it is one."""
    if os.path.isdir(path):
        return ""
    return "not a directory" if os.path.exists(path) else "no such directory"


def make_dir(folder: Path) -> None:
    """Creates a folder and its parents durably; see `open_no_follow` for their rights.

    The folder may be a link to a folder.
    """
    if folder.is_dir():
        return
    if not folder.parent.exists():
        make_dir(folder.parent)
    try:
        folder.mkdir(0o755 | _shared_bits(folder.parent))
    except FileExistsError:  # perhaps by another process, a moment ago
        if not folder.is_dir():
            raise
    fsync_dir(folder.parent)


def make_inner_dir(folder: Path) -> None:
    """Creates a folder inside a run directory. Raises ResourceError if the folder is a link."""
    refuse_link(folder)
    make_dir(folder)


def refuse_link(path: Path) -> None:
    """Raises ResourceError if a path is a link: files somewhere else would be changed."""
    if path.is_symlink():
        raise ResourceError(f"{path}: {IS_LINK}")


def atomic_write(path: Path, content: bytes) -> None:
    """Replaces a file.

    At every instant, also after a power failure, the path holds the old content or the new.
    Processes that write the same file, such as two controllers of one sweep, take turns.
    """
    part = path.with_name(path.name + ".tmp")
    with _lock_folder(path.parent):
        part.unlink(missing_ok=True)  # left by a crash; may be a link, which must not be followed
        with replace_when_done(path, part), open(part, "xb", opener=open_no_follow) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Waits for the folder's other writers, if the system can lock folders (NFS cannot).

    The block runs without the lock if another process holds it for MAX_WAIT_SECONDS: a stopped
    process, or one of another user.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # as of a folder that may be written, but not read
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, descriptor)
            acquire_lock(descriptor, round(MAX_WAIT_SECONDS / RETRY_SECONDS), RETRY_SECONDS)
            # Closing is not enough: a child that another thread forks meanwhile has a copy.
            stack.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        yield


def acquire_lock(file: int | IO[str], attempts: int, pause_seconds: float) -> None:
    """Locks an open file or folder. Raises BlockingIOError if another process keeps the lock."""
    for attempt in range(1, attempts + 1):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt == attempts:
                raise
            time.sleep(pause_seconds)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path to write to, for content that is too large for memory.

    After the block `path` holds the new content durably, and after an error the old content.
    """
    # The suffix stays the same, because libraries require their own suffix.
    part = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    part.unlink(missing_ok=True)
    with replace_when_done(path, part):
        open(part, "xb", opener=open_no_follow).close()  # now no library can follow a link
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def replace_when_done(path: Path, part: Path) -> Iterator[None]:
    """Renames `part`, which the block writes and syncs, to `path`; removes it after an error."""
    try:
        yield
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Makes a new name in the folder durable, if the system can sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
