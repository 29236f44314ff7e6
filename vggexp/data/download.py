"""Downloads one file: complete and verified, or not at all."""

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vggexp.data.catalog import Checksum
from vggexp.errors import DataError
from vggexp.system.files import os_error_as_resource_error
from vggexp.system.locks import lock_download

TIMEOUT_SECONDS = 30.0  # longest wait for the next byte of a file, over all its mirrors
CHUNK_BYTES = 1 << 16
REDOWNLOAD_HINT = "delete it to fetch it again"


def download_file(
    urls: Sequence[str],
    target: Path,
    checksum: Checksum,
    size_cap: int,
    timeout: float | None = None,
) -> None:
    """Downloads `target` from the first URL that has the file, unless it exists.

    URLs that start with https are tried first. Processes that want the same file wait for the
    process that downloads it.

    Args:
        size_cap: largest size in bytes, downloaded and uncompressed.
        timeout: seconds without a byte, over all URLs; None: TIMEOUT_SECONDS.

    Raises:
        DataError: no URL gives a file with this checksum, or an existing file has another one.
        ResourceError: the file cannot be written.
    """
    by_encryption = sorted(urls, key=lambda url: not url.startswith("https:"))
    refusal = os_error_as_resource_error(target, "written", "data.root=FOLDER")
    with refusal, lock_download(target.parent):
        if target.exists():
            _verify_existing(target, checksum, size_cap)
        else:
            seconds = (timeout or TIMEOUT_SECONDS) / len(urls)
            _download_from(by_encryption, target, checksum, size_cap, seconds)


def _verify_existing(target: Path, checksum: Checksum, size_cap: int) -> None:
    try:
        _verify(target, checksum, size_cap)
    except DataError as error:
        raise DataError(f"{target}: {error} ({REDOWNLOAD_HINT})") from error


def _download_from(
    urls: Sequence[str],
    target: Path,
    checksum: Checksum,
    size_cap: int,
    timeout: float,
) -> None:
    # The caller holds the lock, so each part file is the remains of a killed process.
    for leftover in target.parent.glob(f"{target.name}.part-*"):
        leftover.unlink()
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    reasons = []
    try:
        for url in urls:
            try:
                _save(_read_chunks(url, size_cap, timeout), part)
                _verify(part, checksum, size_cap)
            except DataError as error:
                reasons.append(f"{url}: {error}")
            else:
                os.replace(part, target)
                return
    finally:
        part.unlink(missing_ok=True)
    raise DataError(f"cannot fetch {'; '.join(reasons)} (put the file at {target})")


def _read_chunks(url: str, size_cap: int, timeout: float) -> Iterator[bytes]:
    """Yields the file; raises DataError if the file is longer than the cap or is cut off."""
    total = 0
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            while chunk := response.read(CHUNK_BYTES):
                total += len(chunk)
                if total > size_cap:
                    raise DataError(f"more than the {size_cap} bytes that it can have")
                yield chunk
            if response.length:  # read(n) raises no error for a file that is cut off
                raise DataError(f"ended after {total} bytes, {response.length} are missing")
    except urllib.error.HTTPError as error:
        raise DataError(f"HTTP status {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error))
        raise DataError(reason or type(error).__name__) from error


def _save(chunks: Iterator[bytes], path: Path) -> None:
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def _verify(path: Path, checksum: Checksum, size_cap: int) -> None:
    """Raises DataError if the content has another checksum or is longer than the cap."""
    digest = hashlib.new(checksum.algorithm, usedforsecurity=False)
    remaining = size_cap
    try:
        with gzip.open(path) if checksum.uncompressed else open(path, "rb") as file:
            while remaining >= 0 and (chunk := file.read(CHUNK_BYTES)):
                digest.update(chunk)
                remaining -= len(chunk)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"not a gzip file: {error}") from error
    if remaining < 0:
        raise DataError(f"holds more than the {size_cap} bytes that it can have")
    if digest.hexdigest() != checksum.hex:
        raise DataError(f"{checksum.algorithm} {digest.hexdigest()}, expected {checksum.hex}")
