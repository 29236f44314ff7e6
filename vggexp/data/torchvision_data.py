"""Reads the data sets of torchvision by name: small images as tensors, others as lists of files."""

import contextlib
import hashlib
import inspect
import os
import re
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError

import numpy
import torch
from torch import Tensor

from vggexp.data.catalog import DEFAULT_TEST_FRACTION, DatasetSplits
from vggexp.data.datasets import (
    TensorDataset,
    split_test_images,
    tensors_sha256,
    validate_labels,
)
from vggexp.data.download import TIMEOUT_SECONDS
from vggexp.data.folder_split import count_test_images
from vggexp.data.image_folder import FolderIndex, hash_files, read_once, split_index
from vggexp.data.torchvision_sets import (
    ARRAY_SETS,
    TORCHVISION_SETS,
    Arguments,
    TorchvisionSet,
    stored_shape,
)
from vggexp.errors import ConfigError, DataError, VggexpError
from vggexp.formatting import one_line
from vggexp.system.files import cache_dir, missing_resource, os_error_as_resource_error
from vggexp.system.locks import lock_download

Part = TensorDataset | FolderIndex
MISSING = re.compile("not found|does not exist")  # in the texts of torchvision


class Source(NamedTuple):
    """What a configuration says about a data set of torchvision."""

    name: str
    root: Path | None  # None: a folder in the user's cache
    arguments: Arguments
    test_fraction: float | None  # of a set without a test part; None: DEFAULT_TEST_FRACTION


# Data sets read in advance, for processes that are forked from this one.
_PRELOADED: dict[str, DatasetSplits[Any]] = {}


def preload(source: Source) -> None:
    """Reads a data set once for all forks; see `vggexp.data.datasets.preload`."""
    with contextlib.suppress(VggexpError, OSError, MemoryError):
        _PRELOADED[repr(source)] = load_torchvision(source, download=False)


def load_torchvision(source: Source, download: bool) -> DatasetSplits[Any]:
    """Reads a data set and hashes its contents: images, labels and names of the classes.

    The parts are TensorDatasets, or FolderIndexes of image files.

    Args:
        source: the data set.
        download: whether torchvision may download it into the root.

    Raises:
        ConfigError: a package is missing.
        DataError: files are missing, damaged, or cannot be downloaded.
        ResourceError: files may not be read, or cannot be written.
    """
    splits = open_torchvision(source, download)
    if splits.fingerprint:
        return splits

    def with_hashes() -> DatasetSplits[Any]:
        root = _find_root(source)
        parts = {"train": splits.train, "test": splits.test}
        with _on_one_thread():
            hashes = {name: _part_sha256(root, part) for name, part in parts.items()}
        return replace(splits, fingerprint=hashes)

    return read_once(("contents", repr(source)), with_hashes)


def open_torchvision(source: Source, download: bool) -> DatasetSplits[Any]:
    """Reads a data set as `load_torchvision`, without its hashes.

    Of a set of image files none is opened: torchvision lists them. In a block of
    `cached_reads` a set is read only once.
    """
    key = repr(source)
    return _PRELOADED.get(key) or read_once(key, lambda: _open_or_download(source, download))


@contextlib.contextmanager
def _on_one_thread() -> Iterator[None]:
    """Starts no threads in the block: a process with threads of OpenMP cannot be forked.

    The process that checks the jobs of a sweep reads the data, and the jobs are its forks.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _find_root(source: Source) -> Path:
    """Returns the absolute path of the folder that torchvision takes as its root.

    Raises:
        DataError: there is neither a root nor a home folder.
    """
    if source.root is not None:
        return Path(os.path.abspath(source.root))
    cache = cache_dir()
    if cache is None:
        raise DataError(
            f"{source.name}: this user has no home folder to keep the files in (data.root=FOLDER)"
        )
    return Path(os.path.abspath(cache / "torchvision" / source.name))


@_on_one_thread()
def _open_or_download(source: Source, download: bool) -> DatasetSplits[Any]:
    info = TORCHVISION_SETS[source.name]
    _require_packages(source.name, ("torchvision", *info.packages))
    if not info.has_files:
        return _read(source, Path())
    root = _find_root(source)
    try:
        return _read(source, root)
    except DataError:
        if not (download and info.downloads):
            raise
    _require_packages(source.name, info.download_packages)
    _download(source, root)
    return _read(source, root)


def _require_packages(name: str, packages: Sequence[str]) -> None:
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigError(
            f"data.name={name}: needs {', '.join(missing)}; pip install {' '.join(missing)}"
        )


def _read(source: Source, root: Path) -> DatasetSplits[Any]:
    """Reads both parts with torchvision.

    Raises:
        DataError: files are missing or damaged.
        ResourceError: a file may not be read.
    """
    info = TORCHVISION_SETS[source.name]
    if not root.is_dir() or not all((root / name).exists() for name in info.needs):
        raise DataError(_missing_text(source.name, root))
    try:
        train = _construct(source, root, info.train)
        test = None if info.test is None else _construct(source, root, info.test)
        if source.name in ARRAY_SETS:
            return _read_arrays(source, root, train, test)
        return _list_files(source, root, train, test)
    except (VggexpError, MemoryError):
        raise
    except Exception as error:  # torchvision and the libraries it reads with raise any exception
        if isinstance(error, OSError) and (resource := missing_resource(error.filename, error)):
            raise resource from error
        if isinstance(error, FileNotFoundError) or MISSING.search(str(error)):
            raise DataError(_missing_text(source.name, root)) from error
        raise DataError(
            f"{source.name}: torchvision cannot read {root}: "
            f"{type(error).__name__}: {one_line(error)} {_remedy(source.name)}"
        ) from error


def _missing_text(name: str, root: Path) -> str:
    return f"{name}: {root} does not hold its files, or they are damaged {_remedy(name)}"


def _remedy(name: str) -> str:
    info = TORCHVISION_SETS[name]
    if info.downloads:
        return "(a run with data.download=true fetches them; data.root=FOLDER has them elsewhere)"
    if info.has_files:
        return f"(data.root=FOLDER; torchvision.datasets.{name} says what the folder holds)"
    return ""


def _construct(source: Source, root: Path, part: Arguments, download: bool = False) -> Any:
    """Returns the object of torchvision that holds a part of the data."""
    from torchvision import datasets

    info = TORCHVISION_SETS[source.name]
    dataset_class = getattr(datasets, source.name)
    arguments: dict[str, Any] = {**source.arguments, **part}
    if info.has_files:
        arguments["root"] = str(root)
    if info.downloads:
        arguments["download"] = download
    if source.name == "USPS" and not download:
        _check_usps(dataset_class, root, part)
    parameters = inspect.signature(dataset_class).parameters
    if "loader" in parameters or issubclass(dataset_class, datasets.ImageFolder):
        arguments["loader"] = lambda path: path  # the image is decoded later
    return dataset_class(**arguments)


def _check_usps(dataset_class: Any, root: Path, part: Arguments) -> None:
    """Raises DataError for a file without its checksum, which torchvision would unpack anyway."""
    from torchvision.datasets.utils import check_integrity

    _, file, md5 = dataset_class.split_list["train" if part["train"] else "test"]
    if not check_integrity(root / file, md5):
        raise DataError(_missing_text("USPS", root))


def _read_arrays(source: Source, root: Path, train: Any, test: Any) -> DatasetSplits[Any]:
    info = TORCHVISION_SETS[source.name]
    arrays = [_images_and_labels(part, info) for part in (train, test) if part is not None]
    shape = stored_shape(source.name, source.arguments)
    expected = (shape[0], shape[1], shape[1])
    for images, _ in arrays:
        if tuple(images.shape[1:]) != expected or images.dtype != torch.uint8:
            raise DataError(
                f"{source.name}: {root} holds {images.dtype} images of {tuple(images.shape[1:])}, "
                f"expected uint8 of {expected}"
            )
    highest = max(int(labels.max()) for _, labels in arrays)
    classes = _class_names(train, info, highest)
    origin = str(root) if info.has_files else "torchvision"
    parts = [validate_labels(*pair, classes, source.name) for pair in arrays]
    if len(parts) == 2:
        return DatasetSplits(parts[0], parts[1], {}, origin)
    (whole,) = parts
    fraction = _test_fraction(source)
    count = count_test_images(len(whole.labels), fraction)
    split = split_test_images(whole, count, "torchvision test set")
    return DatasetSplits(*split, {}, origin + _split_note(fraction))


def _test_fraction(source: Source) -> float:
    return DEFAULT_TEST_FRACTION if source.test_fraction is None else source.test_fraction


def _split_note(fraction: float) -> str:
    return f"; no test part: {fraction:g} of each class for the test"


def _images_and_labels(dataset: Any, info: TorchvisionSet) -> tuple[Tensor, Tensor]:
    """Returns images [N, C, H, W] and int64 labels [N]."""
    if info.images:
        images = torch.as_tensor(getattr(dataset, info.images)).contiguous()
        labels = torch.as_tensor(numpy.asarray(getattr(dataset, info.labels)))
        images = images.unsqueeze(1) if images.ndim == 3 else images
        labels = labels[:, 0] if labels.ndim == 2 else labels  # QMNIST: the class comes first
        return images, labels.long()
    first, _ = dataset[0]
    shape = numpy.atleast_3d(numpy.asarray(first)).shape
    pixels = numpy.empty((len(dataset), *shape), numpy.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for index in range(len(dataset)):
        image, label = dataset[index]
        if label is None:
            raise DataError(f"{type(dataset).__name__}: an image has no label in these files")
        pixels[index] = numpy.atleast_3d(numpy.asarray(image))
        labels[index] = label
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def _class_names(dataset: Any, info: TorchvisionSet, highest: int) -> tuple[str, ...]:
    """Returns the names of the classes; without names the numbers up to the highest label."""
    names: Any = info.classes
    if isinstance(names, str):
        names = getattr(dataset, names, None) or range(highest + 1)
    if isinstance(names, int):  # how many there are
        names = range(names)
    return tuple(", ".join(name) if isinstance(name, tuple) else str(name) for name in names)


def _list_files(source: Source, root: Path, train: Any, test: Any) -> DatasetSplits[Any]:
    info = TORCHVISION_SETS[source.name]
    parts = []
    for dataset in (train, test):
        if dataset is not None:
            parts.append(_index_files(dataset, info, root))
    highest = max(max(labels) for _, labels in parts)
    classes = _class_names(train, info, highest)
    if test is not None and _class_names(test, info, highest) != classes:
        raise DataError(f"{source.name}: {root}: the parts for training and test differ in classes")
    if info.sorts_classes:
        order = sorted(range(len(classes)), key=lambda label: classes[label])
        number = {label: position for position, label in enumerate(order)}
        classes = tuple(classes[label] for label in order)
        parts = [(paths, [number[label] for label in labels]) for paths, labels in parts]
    indexes = [FolderIndex(paths, labels, classes, Counter()) for paths, labels in parts]
    for index in indexes:
        if not 0 <= min(index.labels) <= max(index.labels) < len(classes):
            raise DataError(f"{source.name}: {root}: labels are not 0..{len(classes) - 1}")
    if len(indexes) == 2:
        return DatasetSplits(indexes[0], indexes[1], {}, str(root))
    fraction = _test_fraction(source)
    rest, chosen = split_index(root, indexes[0], fraction)
    return DatasetSplits(rest, chosen, {}, str(root) + _split_note(fraction))


def _index_files(dataset: Any, info: TorchvisionSet, root: Path) -> tuple[list[Path], list[int]]:
    """Returns the files of a part, and their labels.

    Raises:
        DataError: there is no file, or one outside of the root.
    """
    samples: Iterable[tuple[Any, Any]]
    if info.labels:
        samples = zip(getattr(dataset, info.images), getattr(dataset, info.labels), strict=True)
    else:
        samples = getattr(dataset, info.images) if info.images else _items(dataset)
    found = []
    for file, label in samples:
        path = Path(os.path.normpath(file))
        if not path.is_relative_to(root):
            raise DataError(f"{type(dataset).__name__}: {file}: not below {root}")
        found.append((path, int(label)))
    if not found:
        raise DataError(f"{type(dataset).__name__}: {root} holds none of its images")
    if info.sorts_files:
        found.sort()
    return [path for path, _ in found], [label for _, label in found]


def _items(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Yields path and label of each item; without a loader torchvision opens the image."""
    for index in range(len(dataset)):
        image, label = dataset[index]
        if hasattr(image, "filename"):
            image.close()
            image = image.filename
        yield image, label


def _part_sha256(root: Path, part: Part) -> str:
    """Returns the SHA-256 of the images, the labels and the names of the classes."""
    if isinstance(part, TensorDataset):
        contents = tensors_sha256(part.images, part.labels)
    else:
        labels = ",".join(map(str, part.labels))
        contents = f"{hash_files(root, part.paths).contents} {labels}"
    return hashlib.sha256("\0".join([contents, *part.classes]).encode()).hexdigest()


def _download(source: Source, root: Path) -> None:
    """Downloads a data set beside its place, and then moves it there: complete, or not at all.

    Raises:
        DataError: the download failed, or another file is in its place.
        ResourceError: the files cannot be written.
    """
    info = TORCHVISION_SETS[source.name]
    prefix = f".{source.name}.part-"
    with (
        os_error_as_resource_error(root, "written", "data.root=FOLDER"),
        lock_download(root),
    ):
        with contextlib.suppress(DataError):
            _read(source, root)
            return  # another process has downloaded it
        for leftover in root.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as folder:
            for part in (info.train, info.test):
                if part is not None:
                    _fetch(source, Path(folder), part)
            for path in sorted(Path(folder).iterdir()):
                _move(path, root / path.name)


def _fetch(source: Source, folder: Path, part: Arguments) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # torchvision waits without an end
    try:
        _construct(source, folder, part, download=True)
    except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
        raise _download_error(source, getattr(error, "reason", error)) from error
    except OSError:
        raise
    except Exception as error:  # of an archive that is no archive, or without its checksum
        raise _download_error(source, error) from error
    finally:
        socket.setdefaulttimeout(before)


def _download_error(source: Source, reason: object) -> DataError:
    return DataError(f"{source.name}: cannot be downloaded: {one_line(reason)} (data.root=FOLDER)")


def _move(path: Path, target: Path) -> None:
    """Raises DataError if the target is a folder with files."""
    if target.is_dir() and any(target.iterdir()):
        raise DataError(f"{target}: in the place of the download; move it away")
    os.replace(path, target)
