"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def atomic_write(path: Path, content: bytes) -> None:
    """At every instant the path holds the old content or the new, also after a power cut."""
    part = path.with_name(path.name + ".tmp")
    part.unlink(missing_ok=True)  # left by a crash; may be a link, which must not be followed
    with _replace_when_done(path, part), open(part, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields where to write what is too large to be held: after the block the path holds it, after an error the old."""
    part = path.with_name(
        f"{path.stem}.{os.getpid()}.tmp{path.suffix}"
    )  # libraries want their own suffix
    with _replace_when_done(path, part):
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def _replace_when_done(path: Path, part: Path) -> Iterator[None]:
    """The part, which the block writes and syncs, becomes the path; after an error it is gone."""
    try:
        yield
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    fsync_dir(path.parent)


def fsync_dir(folder: Path) -> None:
    """Makes a new name durable, where the system can sync folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
