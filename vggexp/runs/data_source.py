"""Finds the SHA-256 of the images that a run is trained on. Needs no torch."""

from dataclasses import replace
from pathlib import Path

from vggexp.config.derived import input_spec, with_train_images
from vggexp.config.schema import Config, ImageFolder
from vggexp.config.validate import image_count_problems
from vggexp.data.fingerprint import combined_sha256
from vggexp.data.image_folder import index_folder
from vggexp.errors import ConfigError, DataError


def pin_data(config: Config) -> Config:
    """Sets `data.sha256` from the contents of an image folder, and checks what needs its count.

    The name of the run then follows from the images and not from their path. The other data sets
    have known contents, which are checked when they are read.

    Raises:
        ConfigError: there are too few images for a batch, or to validate every class.
        DataError: the folder cannot be read, or has other contents than `data.sha256`.
    """
    data = config.data
    if not isinstance(data, ImageFolder) or data.root is None:
        return config
    index = index_folder(Path(data.root), data.test_fraction)
    actual = combined_sha256(index.fingerprint)
    if data.sha256 not in (None, actual):
        raise DataError(
            f"data.root={data.root}: the SHA-256 of its contents is {actual}, "
            f"not data.sha256={data.sha256}"
        )
    spec = input_spec(config)._replace(classes=len(index.train.classes))
    spec = with_train_images(spec, config, len(index.train.paths))
    if problems := image_count_problems(config, spec):
        raise ConfigError(*problems)
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
