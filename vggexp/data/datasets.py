"""Finds or downloads the data sets, verifies their files, and reads them as tensors."""

import contextlib
import gzip
import hashlib
import math
import os
import pickle
import tarfile
import zlib
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from vggexp.data.catalog import DATASETS, Checksum, DatasetInfo, DatasetSplits, unreadable
from vggexp.data.download import REDOWNLOAD_HINT, download_file
from vggexp.data.split import stratified_sample
from vggexp.errors import DataError, ResourceError
from vggexp.rng import generator
from vggexp.system.files import atomic_write, cache_dir, os_error_as_resource_error
from vggexp.system.locks import lock_download

ARCHIVE_CAP = 200 << 20  # bytes; CIFAR's archives have 170 and 169 million
GZIP_OVERHEAD = 1.01  # by which the .gz of a file that is not compressed may be longer
GZIP_HEADER = 1024  # bytes


@dataclass(frozen=True, eq=False)
class TensorDataset:
    """Images and labels of one part of a data set."""

    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]
    classes: tuple[str, ...]

    def select(self, chosen: Tensor | list[int]) -> "TensorDataset":
        """Returns the chosen images: by a mask [N], or by their indices."""
        return replace(self, images=self.images[chosen], labels=self.labels[chosen])


# Data sets read in advance, for processes that are forked from this one.
_PRELOADED: dict[tuple[str, Path | None], DatasetSplits[TensorDataset]] = {}


def preload(name: str, root: Path | None) -> None:
    """Reads a data set once for all forks.

    A missing or damaged data set raises nothing here: each fork reports the error itself.
    """
    with contextlib.suppress(DataError, ResourceError, OSError, MemoryError):
        _PRELOADED[name, root] = load_dataset(name, root, download=False)


def load_dataset(name: str, root: Path | None, download: bool) -> DatasetSplits[TensorDataset]:
    """Loads a data set of the catalog.

    The files are looked for in `root` and in the system's folder. Missing files are downloaded
    into `root`, or into the user's cache without a root. A root with download=False is the only
    source.

    Raises:
        DataError: files are missing, damaged, or cannot be downloaded.
        ResourceError: downloaded files cannot be written.
    """
    if (name, root) in _PRELOADED:
        return _PRELOADED[name, root]
    info = DATASETS[name]
    if name == "digits":
        return _load_digits(info)
    folder = _find_or_download(name, info, root, download)
    read = _read_cifar if info.archive else _read_idx_pair
    train, train_hashes = read(info, folder, info.train_files)
    test, test_hashes = read(info, folder, info.test_files)
    return DatasetSplits(train, test, train_hashes | test_hashes, str(folder))


def _find_or_download(name: str, info: DatasetInfo, root: Path | None, download: bool) -> Path:
    """Returns the first folder that holds every file; otherwise fills the last folder."""
    files = info.train_files + info.test_files
    folders = _search_dirs(name, info, root, download)
    for folder in folders:
        missing = [file for file in files if not _find_file(folder, file)]
        if not missing:
            return folder
    package = f", or apt-get install {info.package}" if info.package else ""
    if root is None and cache_dir() is None:
        raise DataError(
            f"{name}: this user has no home folder to keep the files in (data.root=FOLDER{package})"
        )
    if not download:
        searched = " or ".join(dict.fromkeys(map(str, folders)))
        raise DataError(
            f"{name}: no {missing[0]} in {searched} "
            f"(data.root=FOLDER or data.download=true{package})"
        )
    try:
        _download_files(info, folder, missing)
    except DataError as error:
        raise DataError(f"{error}{package}") from error
    return folder


def _search_dirs(name: str, info: DatasetInfo, root: Path | None, download: bool) -> list[Path]:
    """Returns the folders that may hold the files, in the order of the search.

    The last folder is the target of a download.
    """
    system = []
    if info.system and (root is None or download):
        system.append(Path(info.system))
    if root is None:
        cache = cache_dir()
        if cache is None:
            return system
        target = cache / name
        if info.archive:
            target = target / info.folder
        return [*system, target]
    if info.archive:
        return [root, root / info.folder]
    return [root, root / info.folder, *system, root]


def _find_file(folder: Path, file: str) -> Path | None:
    for path in (folder / file, folder / f"{file}.gz"):
        if os.path.isfile(path):  # False also without the permission to look
            return path
    return None


def _download_files(info: DatasetInfo, folder: Path, missing: list[str]) -> None:
    """Downloads the missing files into the folder."""
    if info.archive:
        archive = folder.parent / info.archive
        urls = [mirror + info.archive for mirror in info.mirrors]
        download_file(urls, archive, info.checksums[info.archive], ARCHIVE_CAP)
        _extract(archive, folder, missing)
        return
    for file in missing:
        urls = [f"{mirror}{file}.gz" for mirror in info.mirrors]
        size_cap = int(_idx_bytes(_idx_shape(info, file)) * GZIP_OVERHEAD) + GZIP_HEADER
        download_file(urls, folder / f"{file}.gz", info.checksums[file], size_cap)


def _extract(archive: Path, folder: Path, files: list[str]) -> None:
    """Extracts known file names of a verified archive, and uses no name of it as a path.

    Another process may have extracted the files just before. They are written again, with the
    same bytes.
    """
    refusal = os_error_as_resource_error(folder, "written", "data.root=FOLDER")
    with refusal, lock_download(folder), tarfile.open(archive) as tar:
        for file in files:
            member = tar.extractfile(f"{folder.name}/{file}")
            content = member.read(ARCHIVE_CAP) if member else b""
            atomic_write(folder / file, content)


def _idx_shape(info: DatasetInfo, file: str) -> tuple[int, ...]:
    count = info.train_images if file in info.train_files else info.test_images
    if "idx3" in file:
        return (count, info.size, info.size)
    return (count,)


def _idx_bytes(shape: tuple[int, ...]) -> int:
    return _idx_header_bytes(shape) + math.prod(shape)


def _idx_header_bytes(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape)


def _read_idx_pair(
    info: DatasetInfo,
    folder: Path,
    files: tuple[str, ...],
) -> tuple[TensorDataset, dict[str, str]]:
    """Reads a file of images and a file of labels; returns them and the SHA-256 of each file."""
    images_file, labels_file = files
    images, images_sha256 = _read_idx(info, folder, images_file)
    labels, labels_sha256 = _read_idx(info, folder, labels_file)
    dataset = validate_labels(
        images.unsqueeze(1),
        labels.long(),
        info.classes,
        folder / labels_file,
    )
    return dataset, {images_file: images_sha256, labels_file: labels_sha256}


def _read_idx(info: DatasetInfo, folder: Path, file: str) -> tuple[Tensor, str]:
    """Reads a file in the IDX format (http://yann.lecun.com/exdb/mnist).

    Returns:
        uint8 of the shape that the catalog gives, and the SHA-256 of the uncompressed file.
    """
    path = _find_file(folder, file) or folder / file
    shape = _idx_shape(info, file)
    length = _idx_bytes(shape)
    offset = _idx_header_bytes(shape)
    raw = _read_uncompressed(path, length + 1)
    magic = 0x0800 + len(shape)
    header = []
    for start in range(0, offset, 4):
        header.append(int.from_bytes(raw[start : start + 4], "big"))
    actual_shape = tuple(header[1:])
    if len(raw) >= 4 and header[0] != magic:
        raise DataError(
            f"{path}: magic 0x{header[0]:08x}, expected 0x{magic:08x} ({REDOWNLOAD_HINT})"
        )
    if len(raw) != length:
        more = " or more" if len(raw) > length else ""
        raise DataError(f"{path}: {len(raw)}{more} bytes, expected {length} ({REDOWNLOAD_HINT})")
    if actual_shape != shape:
        raise DataError(
            f"{path}: holds {_format_sizes(actual_shape)} values, "
            f"expected {_format_sizes(shape)} ({REDOWNLOAD_HINT})"
        )
    sha256 = _verify(raw, info.checksums[file], path)
    values = torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=offset)
    return values.view(shape), sha256


def _format_sizes(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _read_uncompressed(path: Path, cap: int) -> bytes:
    """Reads the first `cap` bytes only, so that a small file cannot fill the memory."""
    open_file: Any = gzip.open if path.suffix == ".gz" else open
    try:
        with open_file(path, "rb") as file:
            return file.read(cap)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(
            f"{path}: not a gzip file, or damaged: {error} ({REDOWNLOAD_HINT})"
        ) from error
    except OSError as error:
        raise unreadable(path, error) from error


def _verify(raw: bytes, checksum: Checksum, path: Path) -> str:
    """Returns the SHA-256 of the bytes; raises DataError if the checksum differs."""
    sha256 = hashlib.sha256(raw).hexdigest()
    actual = sha256
    if checksum.algorithm != "sha256":
        actual = hashlib.new(checksum.algorithm, raw, usedforsecurity=False).hexdigest()
    if actual != checksum.hex:
        raise DataError(
            f"{path}: {checksum.algorithm} {actual}, expected {checksum.hex}: "
            f"changed or damaged ({REDOWNLOAD_HINT})"
        )
    return sha256


def _read_cifar(
    info: DatasetInfo,
    folder: Path,
    files: tuple[str, ...],
) -> tuple[TensorDataset, dict[str, str]]:
    """Reads CIFAR's pickled batches; returns them and the SHA-256 of each file.

    A pickle can run code, so the bytes are verified before they are unpickled.
    """
    images: list[Tensor] = []
    labels: list[int] = []
    hashes = {}
    for file in files:
        path = _find_file(folder, file) or folder / file
        raw = _read_uncompressed(path, ARCHIVE_CAP)
        hashes[file] = _verify(raw, info.checksums[file], path)
        batch: dict[str, Any] = pickle.loads(raw, encoding="latin1")
        images.append(torch.from_numpy(batch["data"]))
        labels += batch.get("labels") or batch["fine_labels"]
    pixels = torch.cat(images).view(-1, info.channels, info.size, info.size)
    dataset = validate_labels(pixels, torch.tensor(labels), info.classes, folder)
    return dataset, hashes


def validate_labels(
    images: Tensor,
    labels: Tensor,
    classes: tuple[str, ...],
    origin: object,
) -> TensorDataset:
    """Returns the data set.

    Args:
        origin: names the source in an error text.

    Raises:
        DataError: a label is out of range, or the numbers of labels and images differ.
    """
    if len(images) != len(labels):
        raise DataError(f"{origin}: {len(labels)} labels for {len(images)} images")
    is_invalid = (labels < 0) | (labels >= len(classes))
    rows = is_invalid.nonzero().flatten().tolist()
    if rows:
        label = int(labels[rows[0]])
        raise DataError(
            f"{origin}: label {label} at row {rows[0]}, classes are 0..{len(classes) - 1}"
        )
    return TensorDataset(images, labels, classes)


def _load_digits(info: DatasetInfo) -> DatasetSplits[TensorDataset]:
    table = torch.from_numpy(_read_digits_table())
    pixels = table[:, :-1].reshape(-1, 1, info.size, info.size)
    images = pixels.mul(255 / 16).round().to(torch.uint8)
    labels = table[:, -1].long()
    dataset = validate_labels(images, labels, info.classes, "digits")
    train, test = split_test_images(dataset, info.test_images, "digits test set")
    fingerprint = {"digits": tensors_sha256(images, labels)}
    return DatasetSplits(train, test, fingerprint, "scikit-learn")


def split_test_images(
    dataset: TensorDataset, count: int, purpose: str
) -> tuple[TensorDataset, TensorDataset]:
    """Returns the training images and `count` test images, as `stratified_sample` with seed 0."""
    is_test = torch.zeros(len(dataset.labels), dtype=torch.bool)
    is_test[stratified_sample(dataset.labels, count, 0, purpose)] = True
    return dataset.select(~is_test), dataset.select(is_test)


def _read_digits_table() -> Any:
    """Reads float64 [1797, 65]: 64 pixels of 0..16 and the label.

    The file is read without scikit-learn's code, whose import takes a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise DataError(
            "digits: comes with scikit-learn, which is missing (pip install scikit-learn)"
        )
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    if path.is_file():
        return numpy.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    bunch = load_digits()
    return numpy.column_stack([bunch.data, bunch.target])


def synthetic_dataset(
    images: int,
    classes: int,
    channels: int,
    size: int,
    seed: int = 0,
) -> DatasetSplits[TensorDataset]:
    """Generates images of a pattern for each class and noise.

    A pattern has 4x4 fields of 0..127, and the noise is 0..127. The test set has a fifth of
    `images`, the number of training images.
    """
    fields = torch.randint(
        0,
        128,
        (classes, channels, 4, 4),
        generator=generator(seed, "synthetic patterns"),
        dtype=torch.uint8,
    )
    field = torch.arange(size) * 4 // size
    patterns = fields[:, :, field][..., field]
    train = _noisy_images(patterns, images, generator(seed, "synthetic noise", "train"))
    test = _noisy_images(patterns, images // 5, generator(seed, "synthetic noise", "test"))
    return DatasetSplits(
        train=train,
        test=test,
        fingerprint={
            "train": tensors_sha256(train.images, train.labels),
            "test": tensors_sha256(test.images, test.labels),
        },
        origin="synthetic",
    )


def _noisy_images(patterns: Tensor, count: int, noise: torch.Generator) -> TensorDataset:
    classes = len(patterns)
    images = torch.empty(count, *patterns.shape[1:], dtype=torch.uint8)
    images.random_(0, 128, generator=noise)
    for label in range(classes):
        images[label::classes] += patterns[label]
    labels = torch.arange(count) % classes
    return TensorDataset(images, labels, tuple(map(str, range(classes))))


def tensors_sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
