"""Writes files that exist completely or not at all."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path


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


def atomic_write(path: Path, content: bytes) -> None:
    """Replaces a file.

    At every instant, also after a power failure, the path holds the old content or the new.
    """
    part = path.with_name(path.name + ".tmp")
    part.unlink(missing_ok=True)  # left by a crash; may be a link, which must not be followed
    with replace_when_done(path, part), open(part, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a path to write to, for content that is too large for memory.

    After the block `path` holds the new content, and after an error the old content.
    """
    # The suffix stays the same, because libraries require their own suffix.
    part = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")
    with replace_when_done(path, part):
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
