"""Finds the images that a run is trained on: their numbers and their SHA-256.

Needs torch for the data sets of torchvision alone.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggexp.config.derived import input_spec, is_counted, with_train_images
from vggexp.config.schema import Config, Data, ImageFolder, Torchvision
from vggexp.config.validate import image_count_problems, validate
from vggexp.data.fingerprint import combined_sha256
from vggexp.data.image_folder import index_folder
from vggexp.errors import ConfigError, DataError

if TYPE_CHECKING:
    from vggexp.data.catalog import DatasetSplits
    from vggexp.data.torchvision_data import Source

COUNTS = ("classes", "train_images", "test_images")  # keys of data that follow from its files


def count_data(config: Config, download: bool = False) -> Config:
    """Sets the numbers of classes and images of a data set of torchvision, and checks them.

    The other data sets have known numbers, or are counted where they are needed.

    Args:
        config: the configuration.
        download: whether torchvision may download the data set.

    Raises:
        ConfigError: a value does not fit the data set, or a package is missing.
        DataError: files are missing or damaged.
        ResourceError: files may not be read, or cannot be written.
    """
    data = config.data
    if not isinstance(data, Torchvision) or is_counted(data):
        return config
    from vggexp.data.torchvision_data import open_torchvision

    splits = open_torchvision(torchvision_source(data), download)
    counted = replace(config, data=replace(data, **_checked_counts(data, splits)))
    if problems := validate(counted):
        raise ConfigError(*problems)
    return counted


def _checked_counts(data: Torchvision, splits: "DatasetSplits[Any]") -> dict[str, Any]:
    """Returns the numbers of the data set by their keys; raises ConfigError if others are given."""
    numbers = (len(splits.train.classes), len(splits.train.labels), len(splits.test.labels))
    found: dict[str, Any] = dict(zip(COUNTS, numbers, strict=True))
    for key, number in found.items():
        if getattr(data, key) not in (None, number):
            raise ConfigError(f"data.{key}={getattr(data, key)}: {data.name} has {number}")
    return found


def torchvision_source(data: Torchvision) -> "Source":
    """Returns what the configuration of a data set of torchvision says of its files."""
    from vggexp.data.torchvision_data import Source

    root = Path(data.root) if data.root else None
    return Source(data.name, root, data.arguments, data.test_fraction)


def pin_data(config: Config) -> Config:
    """Sets `data.sha256` from the contents of a folder or of a data set of torchvision.

    The name of the run then follows from the images and not from their path. What needs their
    number is checked. The other data sets have known contents, which are checked when they are
    read. A dry run downloads nothing.

    Raises:
        ConfigError: there are too few images for a batch, or to validate every class; or as
            `count_data`.
        DataError: the data cannot be read, or has other contents than `data.sha256`.
        ResourceError: as `count_data`.
    """
    data = config.data
    if isinstance(data, ImageFolder) and data.root is not None:
        return _pin_folder(config, data)
    if isinstance(data, Torchvision):
        return _pin_torchvision(config)
    return config


def _pin_folder(config: Config, data: ImageFolder) -> Config:
    index = index_folder(Path(data.root or ""), data.test_fraction)
    pinned = replace(data, sha256=_checked_sha256(data, data.sha256, index.fingerprint))
    spec = input_spec(config)._replace(classes=len(index.train.classes))
    spec = with_train_images(spec, config, len(index.train.paths))
    if problems := image_count_problems(config, spec):
        raise ConfigError(*problems)
    return replace(config, data=pinned)


def _pin_torchvision(config: Config) -> Config:
    from vggexp.data.torchvision_data import load_torchvision

    download = config.data.download and not config.sweep.dry_run
    data = count_data(config, download).data
    assert isinstance(data, Torchvision)
    splits = load_torchvision(torchvision_source(data), download)
    _checked_counts(data, splits)
    pinned = replace(data, sha256=_checked_sha256(data, data.sha256, splits.fingerprint))
    return replace(config, data=pinned)


def _checked_sha256(data: Data, expected: str | None, fingerprint: dict[str, str]) -> str:
    """Returns the SHA-256 of the contents; raises DataError if another one is expected."""
    actual = combined_sha256(fingerprint)
    if expected not in (None, actual):
        raise DataError(
            f"{_place(data)}: the SHA-256 of its contents is {actual}, not data.sha256={expected}"
        )
    return actual


def _place(data: Data) -> str:
    return f"data.root={data.root}" if data.root else f"data.name={data.name}"


def check_pinned_data(config: Config, fingerprint: dict[str, str]) -> None:
    """Raises DataError if the images have changed since `pin_data` read them.

    Args:
        fingerprint: of the images that have been read.
    """
    data = config.data
    if not isinstance(data, ImageFolder | Torchvision) or data.sha256 is None:
        return
    if combined_sha256(fingerprint) != data.sha256:
        raise DataError(
            f"{_place(data)}: has changed while the run started; run the same command again"
        )
