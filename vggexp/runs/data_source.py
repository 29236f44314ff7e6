"""Finds the SHA-256 of the images that a run is trained on. Needs no torch."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from vggexp.config.schema import Config, ImageFolder
from vggexp.data.fingerprint import combined_sha256
from vggexp.data.image_folder import index_folder
from vggexp.errors import DataError

HashFn = Callable[[str, float | None], str]  # of data.root and data.test_fraction


def folder_sha256(root: str, test_fraction: float | None) -> str:
    """Returns the SHA-256 of an image folder's contents. Raises DataError."""
    return combined_sha256(index_folder(Path(root), test_fraction).fingerprint)


def pin_data(config: Config, sha256_of: HashFn = folder_sha256) -> Config:
    """Sets `data.sha256` from the contents of an image folder.

    The name of the run then follows from the images and not from their path. The other data sets
    have known contents, which are checked when they are read.

    Args:
        sha256_of: returns the hash of a folder; a sweep reads each folder only once.

    Raises:
        DataError: the folder cannot be read, or has other contents than `data.sha256`.
    """
    data = config.data
    if not isinstance(data, ImageFolder) or data.root is None:
        return config
    actual = sha256_of(data.root, data.test_fraction)
    if data.sha256 not in (None, actual):
        raise DataError(
            f"data.root={data.root}: the SHA-256 of its contents is {actual}, "
            f"not data.sha256={data.sha256}"
        )
    return replace(config, data=replace(data, sha256=actual))


def check_pinned_data(config: Config, fingerprint: dict[str, str]) -> None:
    """Raises DataError if the images have changed since `pin_data` read them.

    Args:
        fingerprint: of the images that have been read.
    """
    data = config.data
    if not isinstance(data, ImageFolder) or data.sha256 is None:
        return
    if combined_sha256(fingerprint) != data.sha256:
        raise DataError(
            f"data.root={data.root}: has changed while the run started; run the same command again"
        )
