"""Checkpoint files: written whole or not at all, and self-checking.

A file is what torch.save writes, followed by a trailer: the 8 bytes of MAGIC and the SHA-256 of
everything before the trailer. The trailer stands after the end of the zip archive, so plain
torch.load(path, weights_only=True) still opens the file.
"""

import hashlib
import os
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from vggexp.errors import CheckpointError, ResourceError, VggexpError
from vggexp.formatting import one_line
from vggexp.system.files import (
    missing_resource,
    open_no_follow,
    open_regular,
    replace_when_done,
)

MAGIC = b"VGGEXP01"
TRAILER_BYTES = len(MAGIC) + 32
CHUNK_BYTES = 1 << 22
MAX_PICKLE_BYTES = 1 << 28  # for names, shapes and the history; tensors are separate entries
ZIP_MAGIC = b"PK\3\4"


class DamagedError(CheckpointError):
    """The content of the file is not what was written."""


class _HashingFile:
    """Hashes what torch.save writes. Unbuffered, so that a full disk raises its own error."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.digest.update(view)
        written = 0
        while written < len(view):  # a raw write may take only a part of the bytes
            written += self.file.write(view[written:]) or 0
        return len(view)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, content: dict[str, Any]) -> None:
    """Writes tensors and plain values durably.

    Raises:
        ResourceError: The disk refused. No file is left behind.
    """
    partial_path = path.with_name(path.name + ".tmp")
    try:
        with (
            replace_when_done(path, partial_path),
            open(partial_path, "wb", buffering=0, opener=open_no_follow) as file,
        ):
            hashing_file = _HashingFile(file)
            torch.save(content, cast(IO[bytes], hashing_file))
            hashing_file.write(MAGIC + hashing_file.digest.digest())
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        raise ResourceError(f"{path}: cannot be written: {error}") from error


def verify(path: Path) -> None:
    """Checks that every byte is as it was written.

    Raises:
        CheckpointError: The file is damaged, or is no regular file.
        ResourceError: A permission or a resource is missing.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb", opener=open_regular) as file:
            remaining = os.fstat(file.fileno()).st_size - TRAILER_BYTES
            while remaining > 0:
                chunk = file.read(min(CHUNK_BYTES, remaining))
                if not chunk:
                    break
                digest.update(chunk)
                remaining -= len(chunk)
            trailer = file.read(TRAILER_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    if remaining != 0 or trailer != MAGIC + digest.digest():
        raise DamagedError(
            f"{path}: damaged, its content does not have the hash it was written with"
        )


def load(path: Path) -> dict[str, Any]:
    """Reads a verified checkpoint onto the CPU without executing anything in the file.

    Raises:
        CheckpointError: The file is damaged or not a checkpoint.
        ResourceError: As `verify`.
    """
    verify(path)
    _check_archive(path)
    return _read(path)


def load_foreign(path: Path) -> Any:
    """Reads a file that another program wrote with torch.save, without executing anything in it.

    The form of torch.save before 2020 is read too.

    Raises:
        CheckpointError: The file was not written by torch.save.
        ResourceError: As `verify`.
    """
    try:
        with open(path, "rb", opener=open_regular) as file:
            is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    except OSError as error:
        raise _unreadable(path, error) from error
    if is_zip:
        _check_archive(path)
    return _read(path)


def _unreadable(path: Path, error: OSError) -> VggexpError:
    return missing_resource(path, error) or CheckpointError(
        f"{path}: cannot be read: {error.strerror}"
    )


def _read(path: Path) -> Any:
    try:
        # torch warns about content that it may not know. The result of the read decides instead.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many unrelated types
        reason = one_line(error)
        if "Weights only" in reason:  # torch's message advises to load the file unsafely
            reason = "not tensors and plain values alone, as torch.save writes them"
        raise CheckpointError(f"{path}: cannot be read: {reason}") from error


def _check_archive(path: Path) -> None:
    """Raises CheckpointError unless the archive needs no more memory than the file is long.

    No entry may be compressed, and no pickle may be larger than MAX_PICKLE_BYTES.
    """
    refusal = CheckpointError(f"{path}: not a file that torch.save writes")
    with open(path, "rb") as file:
        # torch would read anything else as a pickle of its old form.
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise refusal
        try:
            entries = zipfile.ZipFile(file).infolist()
        except (zipfile.BadZipFile, ValueError):
            raise refusal from None
        file_bytes = os.fstat(file.fileno()).st_size
    content_bytes = sum(entry.file_size for entry in entries)
    pickle_bytes = sum(entry.file_size for entry in entries if entry.filename.endswith(".pkl"))
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise refusal
    if content_bytes > file_bytes or pickle_bytes > MAX_PICKLE_BYTES:
        raise refusal


def select_eval_weights(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights to evaluate: the final weights, the moving average, or the model's."""
    if "weights" in checkpoint:
        return checkpoint["weights"]
    if "ema" in checkpoint:
        return checkpoint["ema"]["module"]
    return checkpoint["net"]


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of the bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
