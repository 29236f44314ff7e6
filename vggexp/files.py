"""Files that are there whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def replace(path: Path, content: bytes) -> None:
    """At every instant the path holds the old content or the new, also after a power cut."""
    part = path.with_name(path.name + ".tmp")
    part.unlink(missing_ok=True)  # left by a crash; may be a link, which must not be followed
    with in_place_of(path, part), open(part, "xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def written(path: Path) -> Iterator[Path]:
    """Yields where to write what is too large to be held: after the block the path holds it, after an error the old."""
    part = path.with_name(f"{path.stem}.{os.getpid()}.tmp{path.suffix}")  # libraries want their own suffix
    with in_place_of(path, part):
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())


@contextlib.contextmanager
def in_place_of(path: Path, part: Path) -> Iterator[None]:
    """The part, which the block writes and syncs, becomes the path; after an error it is gone."""
    try:
        yield
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a new name durable, where the system can sync folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
