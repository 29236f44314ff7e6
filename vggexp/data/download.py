"""One file from the network, whole and verified or not at all."""

import gzip
import hashlib
import http.client
import os
import urllib.request
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from vggexp.data.catalog import Checksum
from vggexp.errors import DataError, ResourceError
from vggexp.system.locks import lock_download

TIMEOUT_SECONDS = 30.0  # seconds without a byte that are waited for one file, over all its sources
CHUNK_BYTES = 1 << 16


def download(urls: Sequence[str], target: Path, digest: Checksum, size_cap: int) -> None:
    """Leaves `target` as it is where it is; else takes it from the first url that has it, of at most size_cap bytes.

    Processes that want the same file wait for the one that fetches it. Raises DataError, ResourceError.
    """
    try:
        with lock_download(target.parent):
            if not target.exists():
                _download_from(
                    sorted(urls, key=lambda url: not url.startswith("https:")),
                    target,
                    digest,
                    size_cap,
                )
    except OSError as error:
        raise ResourceError(
            f"{target}: cannot be written: {error.strerror or error} (data.root=FOLDER)"
        ) from error


def _download_from(urls: Sequence[str], target: Path, digest: Checksum, size_cap: int) -> None:
    for left_over in target.parent.glob(
        f"{target.name}.part-*"
    ):  # of a process that was killed: we hold the lock
        left_over.unlink()
    part = target.with_name(f"{target.name}.part-{os.getpid()}")
    reasons = []
    try:
        for url in urls:
            try:
                _save(_read_chunks(url, size_cap, TIMEOUT_SECONDS / len(urls)), part)
                _check(part, digest, size_cap)
            except DataError as reason:
                reasons.append(f"{url}: {reason}")
            else:
                os.replace(part, target)
                return
    finally:
        part.unlink(missing_ok=True)
    raise DataError(f"cannot fetch {'; '.join(reasons)} (put the file at {target})")


def _read_chunks(url: str, size_cap: int, silence: float) -> Iterator[bytes]:
    total = 0
    try:
        with urllib.request.urlopen(url, timeout=silence) as response:
            while piece := response.read(CHUNK_BYTES):
                total += len(piece)
                if total > size_cap:
                    raise DataError(f"more than the {size_cap} bytes that it can have")
                yield piece
            if response.length:  # read(n) does not tell
                raise DataError(f"ended after {total} bytes, {response.length} are missing")
    except urllib.error.HTTPError as error:
        raise DataError(f"HTTP status {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        raise DataError(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _save(pieces: Iterator[bytes], path: Path) -> None:
    with open(path, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _check(path: Path, digest: Checksum, size_cap: int) -> None:
    made = hashlib.new(digest.algorithm, usedforsecurity=False)
    left = size_cap
    try:
        with gzip.open(path) if digest.inside else open(path, "rb") as file:
            while left >= 0 and (piece := file.read(CHUNK_BYTES)):
                made.update(piece)
                left -= len(piece)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"not a gzip file: {error}") from error
    if left < 0:
        raise DataError(f"holds more than the {size_cap} bytes that it can have")
    if made.hexdigest() != digest.hex:
        raise DataError(f"{digest.algorithm} {made.hexdigest()}, wanted {digest.hex}")
