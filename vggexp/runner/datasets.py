"""Builds the loaders of a run from its configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vggexp.config.derived import decodes_each_epoch, flip_only_from, input_spec
from vggexp.config.schema import Config, ImageFiles, Synthetic, Torchvision
from vggexp.config.validate import image_count_problems
from vggexp.data.augment import Augment
from vggexp.data.catalog import DatasetSplits
from vggexp.data.datasets import TensorDataset, load_dataset, synthetic_dataset
from vggexp.data.image_folder import FolderIndex, index_folder
from vggexp.data.image_stats import channel_mean_std, color_basis
from vggexp.data.loaders import InMemoryLoader, Loader, StreamingLoader
from vggexp.data.mix import Mix, MixingLoader
from vggexp.data.split import stratified_sample, train_val_split
from vggexp.data.torchvision_data import load_torchvision
from vggexp.data.transforms import Preprocess
from vggexp.data.workers import decode_images, print_warning
from vggexp.distributed import collectives
from vggexp.errors import ConfigError, DataError
from vggexp.runs.data_source import torchvision_source

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # torchvision's, for folders of images
IMAGENET_STD = (0.229, 0.224, 0.225)
Part = TypeVar("Part", TensorDataset, FolderIndex)
COLOR_SAMPLE = 256  # images at least, whose colors give the components of augment.color


@dataclass(frozen=True)
class DataLoaders:
    """The data of a run."""

    train: Loader | MixingLoader
    val: Loader | None  # None without a validation split
    test: Loader
    classes: tuple[str, ...]
    preprocess: Preprocess
    test_images: Callable[[Tensor], Tensor]  # indices into the test set -> uint8 [N, C, H, W]
    fingerprint: dict[str, str]  # SHA-256 by file name
    origin: str  # a folder, or what made the images
    earlier_fingerprint: dict[str, str]  # as in DatasetSplits

    def changed_files(self, recorded: Mapping[str, str]) -> str:
        """Returns the names of the files that differ from a recorded fingerprint, or ""."""
        if recorded and recorded == self.earlier_fingerprint:
            return ""
        names = []
        for name in sorted({*recorded, *self.fingerprint}):
            if recorded.get(name) != self.fingerprint.get(name):
                names.append(name)
        return ", ".join(names)


def build_loaders(
    config: Config,
    device: torch.device,
    warn: Callable[[str], None] = print_warning,
) -> DataLoaders:
    """Reads and checks the data set, and builds its loaders.

    Args:
        config: the configuration.
        device: where the batches go.
        warn: receives a message if a worker process had to be replaced.

    Raises:
        DataError: the data is missing, corrupt, or has another number of classes.
    """
    cfg = config.data
    if isinstance(cfg, ImageFiles):
        index = _index_files(cfg)
        count = len(index.train.classes)
        if cfg.classes not in (None, count):
            raise DataError(f"{cfg.root}: {count} classes, but data.classes={cfg.classes}")
        index = _limit_test(index, cfg.test_limit)
        if decodes_each_epoch(cfg):
            return _streaming_loaders(config, index, device, warn)
        return _in_memory_loaders(config, _decode_folder(config, index, warn), device)
    if isinstance(cfg, Synthetic):
        splits = synthetic_dataset(
            cfg.images,
            cfg.classes,
            cfg.channels,
            cfg.size,
        )
    elif isinstance(cfg, Torchvision):
        splits = load_torchvision(torchvision_source(cfg), cfg.download)
    else:
        root = Path(cfg.root) if cfg.root else None
        splits = load_dataset(cfg.name, root, cfg.download)
    return _in_memory_loaders(config, _limit_test(splits, cfg.test_limit), device)


def _index_files(data: ImageFiles) -> DatasetSplits[FolderIndex]:
    if isinstance(data, Torchvision):
        return load_torchvision(torchvision_source(data), data.download)
    return index_folder(Path(data.root or ""), data.test_fraction)


def check_image_counts(config: Config, loaders: DataLoaders) -> None:
    """Checks the keys that depend on the numbers of images, now that a folder has been counted.

    Raises:
        ConfigError: there are too few images for a batch, or to validate every class.
    """
    spec = input_spec(config)._replace(
        train_images=loaders.train.count,
        val_images=loaders.val.count if loaders.val else 0,
    )
    if problems := image_count_problems(config, spec):
        raise ConfigError(*problems)


def build_checked_loaders(config: Config, device: torch.device) -> DataLoaders:
    """Builds the loaders as `build_loaders`, and checks the numbers of images.

    Raises:
        ConfigError: as `check_image_counts`.
        DataError: as `build_loaders`.
    """
    loaders = build_loaders(config, device)
    check_image_counts(config, loaders)
    return loaders


def _limit_test(splits: DatasetSplits[Part], limit: int | None) -> DatasetSplits[Part]:
    """Returns the data with the test images that `data.test_limit` leaves.

    The run's seed has no part in the choice: runs of several seeds have the same test images.
    """
    labels = splits.test.labels
    if limit is None or limit >= len(labels):
        return splits
    chosen = stratified_sample(torch.as_tensor(labels), limit, 0, "test limit")
    return replace(splits, test=splits.test.select(chosen.tolist()))


def _in_memory_loaders(
    config: Config,
    splits: DatasetSplits[TensorDataset],
    device: torch.device,
) -> DataLoaders:
    """Builds loaders of images that are all in memory."""
    cfg = config.data
    images = splits.train.images
    labels = splits.train.labels
    test = splits.test  # alone in the closure below, so that `images` is freed
    train, val = _split_indices(labels, config)
    train_images = images[train]
    mean, std = _mean_and_std(config, train_images)
    preprocess = Preprocess(input_spec(config).size, mean, std, config.device.channels_last)
    make_loader = partial(
        InMemoryLoader,
        preprocess=preprocess,
        batch_size=cfg.batch_size,
        device=device,
        seed=config.seed,
        cache=cfg.cache,
    )
    rank_batch = collectives.local_batch_size(cfg.batch_size)
    make_eval_loader = partial(make_loader, batch_size=rank_batch)
    train_loader = make_loader(train_images, labels[train], augment=_augment(config))
    return DataLoaders(
        train=_mixed(train_loader, config, splits.train.classes),
        val=make_eval_loader(images[val], labels[val]) if len(val) else None,
        test=make_eval_loader(test.images, test.labels),
        classes=splits.train.classes,
        preprocess=preprocess,
        test_images=lambda indices: test.images[indices],
        fingerprint=splits.fingerprint,
        origin=splits.origin,
        earlier_fingerprint=splits.earlier_fingerprint,
    )


def _decode_folder(
    config: Config,
    index: DatasetSplits[FolderIndex],
    warn: Callable[[str], None],
) -> DatasetSplits[TensorDataset]:
    """Decodes all images of a folder once, at the size of the network's input."""
    size = input_spec(config).size
    datasets = []
    for part in (index.train, index.test):
        images = decode_images(part.paths, size, config.data.workers, warn)
        labels = torch.tensor(part.labels)
        datasets.append(TensorDataset(images, labels, part.classes))
    train, test = datasets
    return DatasetSplits(train, test, index.fingerprint, index.origin, index.earlier_fingerprint)


def _streaming_loaders(
    config: Config,
    index: DatasetSplits[FolderIndex],
    device: torch.device,
    warn: Callable[[str], None],
) -> DataLoaders:
    """Builds loaders that decode the images of a folder in every epoch."""
    cfg = config.data
    size = input_spec(config).size
    train_indices, val_indices = _split_indices(torch.tensor(index.train.labels), config)
    train = index.train.select(train_indices.tolist())
    val = index.train.select(val_indices.tolist())
    mean, std = _mean_and_std(config, None)
    preprocess = Preprocess(size, mean, std, config.device.channels_last)
    make_loader = partial(
        StreamingLoader,
        preprocess=preprocess,
        batch_size=cfg.batch_size,
        device=device,
        workers=cfg.workers,
        seed=config.seed,
        warn=warn,
    )
    rank_batch = collectives.local_batch_size(cfg.batch_size)
    make_eval_loader = partial(make_loader, batch_size=rank_batch)
    basis = None
    if config.augment.color:  # a few hundred images determine the components well enough
        step = max(1, len(train.paths) // COLOR_SAMPLE)
        sample = decode_images(train.paths[::step], size, 0)
        basis = color_basis(sample)
    train_loader = make_loader(train.paths, train.labels, augment=_augment(config), basis=basis)
    return DataLoaders(
        train=_mixed(train_loader, config, index.train.classes),
        val=make_eval_loader(val.paths, val.labels) if val.paths else None,
        test=make_eval_loader(index.test.paths, index.test.labels),
        classes=index.train.classes,
        preprocess=preprocess,
        test_images=lambda indices: decode_images(
            index.test.select(indices.tolist()).paths, size, 0
        ),
        fingerprint=index.fingerprint,
        origin=index.origin,
        earlier_fingerprint=index.earlier_fingerprint,
    )


def _augment(config: Config) -> Augment:
    """Returns the changes of single images."""
    changes = {key: value for key, value in vars(config.augment).items() if key in Augment._fields}
    return Augment(**changes, flip_only_from=flip_only_from(config))


def _mixed(loader: Loader, config: Config, classes: Sequence[str]) -> Loader | MixingLoader:
    """Returns the loader of the training images, which mixes pairs if the configuration says so."""
    mix = Mix(config.augment.mixup, config.augment.cutmix)
    if mix == Mix():
        return loader
    return MixingLoader(loader, mix, len(classes), flip_only_from(config))


def _split_indices(labels: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Returns the indices of the training and of the validation images.

    With `data.limit` both come from the first images that are drawn.
    """
    limit = config.data.limit
    val_fraction = config.data.val_fraction
    if limit is None or limit >= len(labels):
        return train_val_split(labels, val_fraction, config.seed)
    limited = stratified_sample(labels, limit, config.seed, "limit")
    train, val = train_val_split(labels[limited], val_fraction, config.seed)
    return limited[train], limited[val]


def _mean_and_std(config: Config, images: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Returns the mean and std [C] of the training images, None without `data.normalize`.

    A folder of images gets ImageNet's, because its own would need a pass over all images.
    """
    if not config.data.normalize:
        return None, None
    if images is None or isinstance(config.data, ImageFiles):
        return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return channel_mean_std(images)


def make_preprocess(config: Config, mean: Tensor | None, std: Tensor | None) -> Preprocess:
    """Returns the preprocessing of a finished run, on the CPU. mean, std: [C]."""
    return Preprocess(input_spec(config).size, mean, std)
