"""The data sets as tensors: found or fetched, verified, read."""

import contextlib
import hashlib
import math
import os
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from vggexp.data.catalog import DATASETS, Checksum, DatasetInfo, DatasetSplits
from vggexp.data.download import download
from vggexp.data.split import stratified_sample
from vggexp.errors import DataError, ResourceError
from vggexp.rng import generator
from vggexp.system.files import atomic_write
from vggexp.system.locks import lock_download

ARCHIVE_CAP = 200 << 20  # bytes; CIFAR's are 170 and 169 million
GZIP_OVERHEAD = 1024  # bytes that a .gz of what cannot be compressed may be longer by
REDOWNLOAD_HINT = "delete it to fetch it again"


@dataclass(frozen=True, eq=False)
class TensorDataset:
    images: Tensor  # uint8 [N, C, H, W]
    labels: Tensor  # int64 [N]
    classes: tuple[str, ...]


_PRELOADED: dict[
    tuple[str, Path | None], DatasetSplits[TensorDataset]
] = {}  # for processes that are forked from this one


def preload(name: str, root: Path | None) -> None:
    """Reads the data set once for all forks; where it is not there or not whole, each of them will find out."""
    with contextlib.suppress(DataError, ResourceError, OSError, MemoryError):
        _PRELOADED[name, root] = load_dataset(name, root, download=False)


def load_dataset(name: str, root: Path | None, download: bool) -> DatasetSplits[TensorDataset]:
    """A data set of the catalogue, from `root`, the system's folder, or a download into `root` or the user's cache.

    A root that may not be filled (download=False) is the only source. Raises DataError, ResourceError.
    """
    if (name, root) in _PRELOADED:
        return _PRELOADED[name, root]
    facts = DATASETS[name]
    if name == "digits":
        return _digits(facts)
    folder = _folder(name, facts, root, download)
    read = _batches if facts.archive else _idx_pair
    train, train_hashes = read(facts, folder, facts.train_files)
    test, test_hashes = read(facts, folder, facts.test_files)
    return DatasetSplits(train, test, train_hashes | test_hashes, str(folder))


def _folder(name: str, facts: DatasetInfo, root: Path | None, download: bool) -> Path:
    """The first place that holds every file; else the last, filled."""
    files = facts.train_files + facts.test_files
    places = _search_dirs(name, facts, root, download)
    folder = next(
        (place for place in places if all(_find_file(place, file) for file in files)), places[-1]
    )
    if missing := [file for file in files if not _find_file(folder, file)]:
        package = f", or apt-get install {facts.package}" if facts.package else ""
        if not download:
            looked = " or ".join(dict.fromkeys(map(str, places)))
            raise DataError(
                f"{name}: no {missing[0]} in {looked} (data.root=FOLDER or data.download=true{package})"
            )
        try:
            _download(facts, folder, missing)
        except DataError as error:
            raise DataError(f"{error}{package}") from error
    return folder


def _search_dirs(name: str, facts: DatasetInfo, root: Path | None, download: bool) -> list[Path]:
    """Where the files may be, in the order of trying; the last is the one to fetch them into."""
    system = [Path(facts.system)] if facts.system and (root is None or download) else []
    if root is None:
        own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vggexp" / name
        return [*system, own / facts.folder if facts.archive else own]
    if facts.archive:
        return [root, root / facts.folder]
    return [root, root / facts.folder, *system, root]


def _find_file(folder: Path, file: str) -> Path | None:
    return next((path for path in (folder / file, folder / f"{file}.gz") if path.is_file()), None)


def _download(facts: DatasetInfo, folder: Path, missing: list[str]) -> None:
    """Into the folder, what it does not hold yet."""
    if facts.archive:
        archive = folder.parent / facts.archive
        download(
            [mirror + facts.archive for mirror in facts.mirrors],
            archive,
            facts.digests[facts.archive],
            ARCHIVE_CAP,
        )
        _extract(archive, folder, missing)
        return
    for file in missing:
        urls = [f"{mirror}{file}.gz" for mirror in facts.mirrors]
        download(
            urls,
            folder / f"{file}.gz",
            facts.digests[file],
            _idx_bytes(_idx_shape(facts, file)) + GZIP_OVERHEAD,
        )


def _extract(archive: Path, folder: Path, files: list[str]) -> None:
    """Only names we know are taken, and none of the archive's own is used as a path."""
    try:
        with lock_download(folder), tarfile.open(archive) as tar:
            for file in files:  # again where another process has just done it: the same bytes
                member = tar.extractfile(f"{folder.name}/{file}")
                atomic_write(folder / file, member.read(ARCHIVE_CAP) if member else b"")
    except (tarfile.TarError, KeyError, EOFError, zlib.error) as error:
        raise DataError(
            f"{archive}: not the archive it should be: {error} ({REDOWNLOAD_HINT})"
        ) from error
    except OSError as error:
        raise ResourceError(
            f"{folder}: cannot be written: {error.strerror or error} (data.root=FOLDER)"
        ) from error


def _idx_shape(facts: DatasetInfo, file: str) -> tuple[int, ...]:
    count = facts.train_images if file in facts.train_files else facts.test_images
    return (count, facts.size, facts.size) if "idx3" in file else (count,)


def _idx_bytes(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape) + math.prod(shape)


def _idx_pair(
    facts: DatasetInfo, folder: Path, files: tuple[str, ...]
) -> tuple[TensorDataset, dict[str, str]]:
    (images, one), (labels, other) = (_idx(facts, folder, file) for file in files)
    hashes = dict(zip(files, (one, other), strict=True))
    return validate_labels(
        images.unsqueeze(1), labels.long(), facts.classes, folder / files[1]
    ), hashes


def _idx(facts: DatasetInfo, folder: Path, file: str) -> tuple[Tensor, str]:
    """uint8 of the shape that the catalogue gives, and the SHA-256. The format: http://yann.lecun.com/exdb/mnist."""
    path = _find_file(folder, file) or folder / file
    shape = _idx_shape(facts, file)
    wanted = _idx_bytes(shape)
    raw = _unpacked(path, wanted + 1)
    head = tuple(int.from_bytes(raw[at : at + 4], "big") for at in range(0, 4 + 4 * len(shape), 4))
    magic = 0x0800 + len(shape)
    if len(raw) >= 4 and head[0] != magic:
        raise DataError(f"{path}: magic 0x{head[0]:08x}, wanted 0x{magic:08x} ({REDOWNLOAD_HINT})")
    if len(raw) != wanted:
        more = " or more" if len(raw) > wanted else ""
        raise DataError(
            f"{path}: {wanted} bytes wanted, {len(raw)}{more} found ({REDOWNLOAD_HINT})"
        )
    if head[1:] != shape:
        raise DataError(
            f"{path}: says it holds {_times(head[1:])} values, wanted {_times(shape)} ({REDOWNLOAD_HINT})"
        )
    sha256 = _verified(raw, facts.digests[file], path)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=4 + 4 * len(shape)).view(
        shape
    ), sha256


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))


def _unpacked(path: Path, cap: int) -> bytes:
    """The first `cap` bytes, so that a small file cannot fill the memory."""
    try:
        with open(path, "rb") as file:
            packed = file.read(cap + GZIP_OVERHEAD)
        return (
            zlib.decompressobj(31).decompress(packed, cap) if path.suffix == ".gz" else packed[:cap]
        )
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except zlib.error as error:
        raise DataError(f"{path}: not a gzip file: {error} ({REDOWNLOAD_HINT})") from error


def _verified(raw: bytes, digest: Checksum, path: Path) -> str:
    """The SHA-256 of bytes that have the digest. Raises DataError for others."""
    sha256 = hashlib.sha256(raw).hexdigest()
    found = sha256
    if digest.algorithm != "sha256":
        found = hashlib.new(digest.algorithm, raw, usedforsecurity=False).hexdigest()
    if found != digest.hex:
        raise DataError(
            f"{path}: {digest.algorithm} {found}, wanted {digest.hex}: changed or damaged ({REDOWNLOAD_HINT})"
        )
    return sha256


def _batches(
    facts: DatasetInfo, folder: Path, files: tuple[str, ...]
) -> tuple[TensorDataset, dict[str, str]]:
    """CIFAR's pickled batches. A pickle can run code, so its bytes are verified before it is opened."""
    images: list[Tensor] = []
    labels: list[int] = []
    hashes = {}
    for file in files:
        raw = _unpacked(folder / file, ARCHIVE_CAP)
        hashes[file] = _verified(raw, facts.digests[file], folder / file)
        batch: dict[str, Any] = pickle.loads(raw, encoding="latin1")
        images.append(torch.from_numpy(batch["data"]))
        labels += batch.get("labels") or batch["fine_labels"]
    pixels = torch.cat(images).view(-1, facts.channels, facts.size, facts.size)
    return validate_labels(pixels, torch.tensor(labels), facts.classes, folder), hashes


def validate_labels(
    images: Tensor, labels: Tensor, classes: tuple[str, ...], where: object
) -> TensorDataset:
    """Raises DataError where labels are out of range or not as many as images."""
    if len(images) != len(labels):
        raise DataError(f"{where}: {len(labels)} labels for {len(images)} images")
    wrong = ((labels < 0) | (labels >= len(classes))).nonzero().flatten()
    if len(wrong):
        row = int(wrong[0])
        raise DataError(
            f"{where}: label {int(labels[row])} at row {row}, classes are 0..{len(classes) - 1}"
        )
    return TensorDataset(images, labels, classes)


def _digits(facts: DatasetInfo) -> DatasetSplits[TensorDataset]:
    table = torch.from_numpy(_digits_table())
    images = (
        table[:, :-1].reshape(-1, 1, facts.size, facts.size).mul(255 / 16).round().to(torch.uint8)
    )
    whole = validate_labels(images, table[:, -1].long(), facts.classes, "digits")
    held_out = torch.zeros(len(images), dtype=torch.bool)
    held_out[stratified_sample(whole.labels, facts.test_images, 0, "digits test set")] = True
    train, test = (
        TensorDataset(images[part], whole.labels[part], facts.classes)
        for part in (~held_out, held_out)
    )
    return DatasetSplits(train, test, {"digits": _sha256(images, whole.labels)}, "scikit-learn")


def _digits_table() -> Any:
    """float64 [1797, 65]: 64 pixels of 0..16 and the label. Read without scikit-learn's code, which takes a second."""
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
    images: int, classes: int, channels: int, size: int, seed: int = 0
) -> DatasetSplits[TensorDataset]:
    """Each class has a pattern of 4x4 fields of 0..127; noise of 0..127 is added. The test set has a fifth as many."""
    coarse = torch.randint(
        0,
        128,
        (classes, channels, 4, 4),
        generator=generator(seed, "synthetic patterns"),
        dtype=torch.uint8,
    )
    field = torch.arange(size) * 4 // size
    patterns = coarse[:, :, field][..., field]

    def part(count: int, purpose: str) -> TensorDataset:
        pixels = torch.empty(count, channels, size, size, dtype=torch.uint8)
        pixels.random_(0, 128, generator=generator(seed, "synthetic noise", purpose))
        for label in range(classes):
            pixels[label::classes] += patterns[label]
        return TensorDataset(pixels, torch.arange(count) % classes, tuple(map(str, range(classes))))

    train = part(images, "train")
    test = part(images // 5, "test")
    fingerprint = {
        name: _sha256(of.images, of.labels) for name, of in (("train", train), ("test", test))
    }
    return DatasetSplits(train, test, fingerprint, "synthetic")


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
