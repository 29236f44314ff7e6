"""Checkpoint files: written whole or not at all, and self-checking.

A file is what torch.save writes, then a trailer of 8 bytes MAGIC and the SHA-256 of all before it. The trailer stands
after the end of the zip archive, so that plain torch.load(path, weights_only=True) still opens the file.
"""

import hashlib
import os
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from vggexp.errors import CheckpointError, ResourceError
from vggexp.system.files import _replace_when_done

MAGIC = b"VGGEXP01"
TRAILER_BYTES = len(MAGIC) + 32
CHUNK_BYTES = 1 << 22
PICKLE_BYTES = 1 << 28  # of names, shapes and the history; tensors lie beside it
ZIP = b"PK\3\4"


class DamagedError(CheckpointError):
    """The file's content is not what was written."""


class _Hashing:
    """A file that torch.save can write to, unbuffered so that a full disk is told by its own error."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        written = 0
        while written < len(view):  # a raw write may take fewer bytes than it is given
            written += self.file.write(view[written:]) or 0
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values, durably. Raises ResourceError and leaves no file when the disk refuses."""
    part = path.with_name(path.name + ".tmp")
    try:
        with _replace_when_done(path, part), open(part, "wb", buffering=0) as file:
            hashing = _Hashing(file)
            torch.save(content, cast(IO[bytes], hashing))
            hashing.write(MAGIC + hashing.digest.digest())
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise ResourceError(f"{path}: cannot be written: {error}") from error


def verify(path: Path) -> None:
    """Raises CheckpointError unless every byte is as it was written."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - TRAILER_BYTES
            while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
            trailer = file.read(TRAILER_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if left != 0 or trailer != MAGIC + digest.digest():
        raise DamagedError(
            f"{path}: damaged, its content does not have the hash it was written with"
        )


def load(path: Path) -> dict[str, Any]:
    """Reads a verified checkpoint onto the CPU; nothing in it is executed. Raises CheckpointError."""
    verify(path)
    if not _plain(path):
        raise CheckpointError(f"{path}: not a file that torch.save writes")
    return _read(path)


def load_foreign(path: Path) -> Any:
    """What another program saved with torch.save, also in its form before 2020; as safe. Raises CheckpointError."""
    try:
        with open(path, "rb") as file:
            is_zip = file.read(len(ZIP)) == ZIP
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if is_zip and not _plain(path):
        raise CheckpointError(f"{path}: not a file that torch.save writes")
    with warnings.catch_warnings(
        action="ignore"
    ):  # torch's, of what it may not know; the outcome tells
        return _read(path)


def _read(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many unrelated types
        told = " ".join(str(error).split())[:200]
        if "Weights only" in told:  # with torch's advice to load it unsafely
            told = "not tensors and plain values alone, as torch.save writes them"
        raise CheckpointError(f"{path}: cannot be read: {told}") from error


def _plain(path: Path) -> bool:
    """An archive that needs no more memory than the file is long: none of it compressed, and no endless pickle."""
    with open(path, "rb") as file:
        if file.read(len(ZIP)) != ZIP:  # torch would take it for a pickle of its old form
            return False
        try:
            entries = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, ValueError):
            return False
        size = os.fstat(file.fileno()).st_size
    pickles = [entry.file_size for entry in entries if entry.filename.endswith(".pkl")]
    stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    return (
        stored
        and sum(entry.file_size for entry in entries) <= size
        and sum(pickles) <= PICKLE_BYTES
    )


def weights_of(saved: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that scores are taken with: the final ones, else the moving average, else the network's."""
    if "ema" in saved:
        return saved["ema"]["module"]
    return saved.get("weights") or saved["net"]


def weights_sha256(weights: dict[str, Tensor]) -> str:
    """SHA-256 of the bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(
            weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        )
    return digest.hexdigest()
