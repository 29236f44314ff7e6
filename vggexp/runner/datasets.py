from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vggexp.config.derived import input_spec
from vggexp.config.schema import Config, ImageFolder, Synthetic
from vggexp.data.catalog import DatasetSplits
from vggexp.data.datasets import TensorDataset, load_dataset, synthetic_dataset
from vggexp.data.image_folder import FolderIndex, index_folder
from vggexp.data.loaders import InMemoryLoader, Loader, StreamingLoader
from vggexp.data.split import stratified_sample, train_val_split
from vggexp.data.transforms import Augment, Preprocess, channel_mean_std, color_basis
from vggexp.data.workers import decode_images
from vggexp.distributed import collectives
from vggexp.errors import DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)  # torchvision's, for streamed folders


@dataclass(frozen=True)
class DataLoaders:
    """What a run trains on, validates on (None without a split) and tests on, and what to know about it."""

    train: Loader
    val: Loader | None
    test: Loader
    classes: tuple[str, ...]
    preprocess: Preprocess
    pictures: Callable[[Tensor], Tensor]  # places in the test set -> uint8 [N, C, H, W]
    fingerprint: dict[str, str]
    origin: str

    def changed(self, there: Mapping[str, str]) -> str:
        """The files that are not those of another fingerprint, or nothing."""
        here = self.fingerprint
        return ", ".join(
            name for name in sorted({*there, *here}) if there.get(name) != here.get(name)
        )


def build_loaders(
    config: Config, device: torch.device, warn: Callable[[str], None] = print
) -> DataLoaders:
    """Reads and checks the data set. Raises DataError. warn: told of a worker process that had to be replaced."""
    wanted = config.data
    if isinstance(wanted, ImageFolder):
        index = index_folder(Path(wanted.root or ""))
        if wanted.classes not in (None, len(index.train.classes)):
            raise DataError(
                f"{wanted.root}: {len(index.train.classes)} classes, but data.classes={wanted.classes}"
            )
        return (
            _streaming_loaders(config, index, device, warn)
            if wanted.cache == "none"
            else _in_memory_loaders(config, _decode_folder(config, index), device)
        )
    if isinstance(wanted, Synthetic):
        loaded = synthetic_dataset(wanted.images, wanted.classes, wanted.channels, wanted.size)
    else:
        loaded = load_dataset(
            wanted.name, Path(wanted.root) if wanted.root else None, wanted.download
        )
    return _in_memory_loaders(config, loaded, device)


def _in_memory_loaders(
    config: Config, loaded: DatasetSplits[TensorDataset], device: torch.device
) -> DataLoaders:
    """Every image in memory."""
    wanted = config.data
    train, val = _split_indices(loaded.train.labels, config)
    images = loaded.train.images[train]
    mean, std = _mean_and_std(config, images)
    preprocess = Preprocess(input_spec(config).size, mean, std, config.device.channels_last)
    make = partial(
        InMemoryLoader,
        preprocess=preprocess,
        batch_size=wanted.batch_size,
        device=device,
        seed=config.seed,
        cache=wanted.cache,
    )
    score = partial(make, batch_size=collectives.local_batch_size(wanted.batch_size))
    return DataLoaders(
        train=make(images, loaded.train.labels[train], augment=Augment(**vars(config.augment))),
        val=score(loaded.train.images[val], loaded.train.labels[val]) if len(val) else None,
        test=score(loaded.test.images, loaded.test.labels),
        classes=loaded.train.classes,
        preprocess=preprocess,
        pictures=lambda places: loaded.test.images[places],
        fingerprint=loaded.fingerprint,
        origin=loaded.origin,
    )


def _mean_and_std(config: Config, images: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Mean and deviation of the training images; ImageNet's for a folder, whose own would take reading it whole."""
    if not config.data.normalize:
        return None, None
    if images is None or isinstance(config.data, ImageFolder):
        return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return channel_mean_std(images)


def _decode_folder(
    config: Config, index: DatasetSplits[FolderIndex]
) -> DatasetSplits[TensorDataset]:
    """A folder's pictures, decoded once and kept at the network's size."""
    size = input_spec(config).size
    workers = config.data.workers
    train, test = (
        TensorDataset(
            decode_images(part.paths, size, workers), torch.tensor(part.labels), part.classes
        )
        for part in (index.train, index.test)
    )
    return DatasetSplits(train, test, index.fingerprint, index.origin)


def _streaming_loaders(
    config: Config,
    index: DatasetSplits[FolderIndex],
    device: torch.device,
    warn: Callable[[str], None],
) -> DataLoaders:
    """A folder's pictures, decoded in every epoch."""
    wanted = config.data
    size = input_spec(config).size
    labels = torch.tensor(index.train.labels)
    train, val = _split_indices(labels, config)
    mean, std = _mean_and_std(config, None)
    preprocess = Preprocess(size, mean, std, config.device.channels_last)
    make = partial(
        StreamingLoader,
        preprocess=preprocess,
        batch_size=wanted.batch_size,
        device=device,
        workers=wanted.workers,
        seed=config.seed,
        warn=warn,
    )
    score = partial(make, batch_size=collectives.local_batch_size(wanted.batch_size))

    def paths(places: Tensor) -> list[Path]:
        return [index.train.paths[place] for place in places.tolist()]

    # The colours of a few hundred pictures tell the components well enough.
    sample = (
        decode_images(paths(train[:: max(1, len(train) // 256)]), size, 0)
        if config.augment.color
        else None
    )
    return DataLoaders(
        train=make(
            paths(train),
            labels[train].tolist(),
            augment=Augment(**vars(config.augment)),
            basis=None if sample is None else color_basis(sample),
        ),
        val=score(paths(val), labels[val].tolist()) if len(val) else None,
        test=score(index.test.paths, index.test.labels),
        classes=index.train.classes,
        preprocess=preprocess,
        pictures=lambda places: decode_images(
            [index.test.paths[place] for place in places.tolist()], size, 0
        ),
        fingerprint=index.fingerprint,
        origin=index.origin,
    )


def _split_indices(labels: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Places of the training and of the validation images, both taken from the first `limit` drawn."""
    if config.data.limit is None or config.data.limit >= len(labels):
        return train_val_split(labels, config.data.val_fraction, config.seed)
    limited = stratified_sample(labels, config.data.limit, config.seed, "limit")
    train, val = train_val_split(labels[limited], config.data.val_fraction, config.seed)
    return limited[train], limited[val]


def make_preprocess(config: Config, mean: Tensor | None, std: Tensor | None) -> Preprocess:
    """What stands before the network of a finished run, on the CPU."""
    return Preprocess(input_spec(config).size, mean, std)
