"""Readers of the real Fashion-MNIST, and of small intact and damaged files in the same formats."""

import ast
import dataclasses
import gzip
import hashlib
import io
import pickle
import pwd
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import datasets

from vggexp.data import catalog, download, split
from vggexp.data import datasets as datasets_module
from vggexp.data.catalog import DATASETS, IDX_TEST, IDX_TRAIN, Checksum, DatasetInfo, DatasetSplits
from vggexp.data.datasets import load_dataset, synthetic_dataset, validate_labels
from vggexp.errors import DataError, ResourceError

SYSTEM = Path(DATASETS["fashion_mnist"].system)
IMAGES, LABELS = IDX_TRAIN
Files = dict[str, bytes]


@pytest.mark.debian
def test_fashion_mnist() -> None:
    loaded = load_dataset("fashion_mnist", None, download=False)
    checksums = DATASETS["fashion_mnist"].checksums
    assert loaded.origin == str(SYSTEM)
    assert loaded.fingerprint == {file: checksum.hex for file, checksum in checksums.items()}
    for part, count in ((loaded.train, 60_000), (loaded.test, 10_000)):
        assert part.images.shape == (count, 1, 28, 28)
        assert part.images.dtype == torch.uint8
        assert part.labels.bincount().tolist() == [count // 10] * 10
        assert part.labels.dtype == torch.int64
    total = int(loaded.train.images.sum(dtype=torch.int64))
    assert round(total / loaded.train.images.numel() / 255, 5) == 0.28604


def idx_file(values: np.ndarray) -> bytes:
    header = [0x0800 + values.ndim, *values.shape]
    return b"".join(number.to_bytes(4, "big") for number in header) + values.tobytes()


@pytest.fixture
def idx_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Files:
    """Six and four images of 3x3, with the catalog's entry of fashion_mnist changed to fit."""
    random = np.random.default_rng(0)
    files: Files = {}
    for (images, labels), count in ((IDX_TRAIN, 6), (IDX_TEST, 4)):
        files[images] = idx_file(random.integers(0, 256, (count, 3, 3), dtype=np.uint8))
        files[labels] = idx_file(np.arange(count, dtype=np.uint8))
    set_checksums(
        monkeypatch,
        "fashion_mnist",
        files,
        uncompressed=True,
        size=3,
        train_images=6,
        test_images=4,
        system=str(tmp_path / "system"),
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files


def set_checksums(
    monkeypatch: pytest.MonkeyPatch, name: str, files: Files, uncompressed: bool, **changes: Any
) -> None:
    """Changes a data set of the catalog, so that it consists of these files."""
    checksums = {
        file: Checksum("sha256", hashlib.sha256(raw).hexdigest(), uncompressed)
        for file, raw in files.items()
    }
    info = dataclasses.replace(DATASETS[name], checksums=checksums, **changes)
    monkeypatch.setitem(DATASETS, name, info)


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, raw in files.items():
        (folder / file).write_bytes(raw)
    return folder


def compressed(files: Files) -> Files:
    return {f"{file}.gz": gzip.compress(raw) for file, raw in files.items()}


def in_two_members(raw: bytes) -> bytes:
    """Returns gzip files one after the other, the first of them not compressed, as a whole file."""
    return gzip.compress(raw[:20], 0) + gzip.compress(raw[20:])


def serve(monkeypatch: pytest.MonkeyPatch, files: Files) -> list[str]:
    """Serves files in place of the network; returns the list of downloaded files."""
    requests: list[str] = []

    def read_chunks(url: str, size_cap: int, timeout: float) -> Iterable[bytes]:
        file = url.rsplit("/", 1)[1]
        requests.append(file)
        return [files[file]]

    monkeypatch.setattr(download, "_read_chunks", read_chunks)
    return requests


def assert_same(actual: DatasetSplits, expected: DatasetSplits) -> None:
    for part in ("train", "test"):
        assert torch.equal(getattr(actual, part).images, getattr(expected, part).images)
        assert torch.equal(getattr(actual, part).labels, getattr(expected, part).labels)
    assert actual.fingerprint == expected.fingerprint


def test_layouts_hold_the_same(idx_files: Files, tmp_path: Path) -> None:
    plain = load_dataset("fashion_mnist", write(tmp_path / "raw", idx_files), download=False)
    assert plain.train.images.numpy().tobytes() == idx_files[IMAGES][16:]
    assert plain.train.images.shape == (6, 1, 3, 3)
    assert plain.test.labels.tolist() == [0, 1, 2, 3]
    write(tmp_path / "torchvision" / "FashionMNIST" / "raw", idx_files)
    write(tmp_path / "compressed", compressed(idx_files))
    write(tmp_path / "system", compressed(idx_files))
    members = {f"{file}.gz": in_two_members(raw) for file, raw in idx_files.items()}
    write(tmp_path / "members", members)
    for root in (tmp_path / "torchvision", tmp_path / "compressed", tmp_path / "members", None):
        assert_same(load_dataset("fashion_mnist", root, download=False), plain)
    expected = datasets.FashionMNIST(tmp_path / "torchvision", train=False)
    assert torch.equal(plain.test.images[:, 0], expected.data)
    assert torch.equal(plain.test.labels, expected.targets)


def test_download_fills_the_root_or_the_cache(
    idx_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = serve(monkeypatch, compressed(idx_files))
    root = write(tmp_path / "root", {IMAGES: idx_files[IMAGES]})
    in_root = load_dataset("fashion_mnist", root, download=True)
    assert in_root.origin == str(root)
    assert sorted(requests) == sorted(f"{file}.gz" for file in idx_files if file != IMAGES)
    requests.clear()
    in_cache = load_dataset("fashion_mnist", None, download=True)
    assert in_cache.origin == str(tmp_path / "cache" / "vggexp" / "fashion_mnist")
    assert len(requests) == 4
    assert_same(in_cache, in_root)
    assert_same(load_dataset("fashion_mnist", None, download=False), in_root)
    assert len(requests) == 4


def test_no_network(idx_files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_error(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", raise_error)
    message = r"^cannot fetch https://.*: Network is unreachable.*, or apt-get install"
    with pytest.raises(DataError, match=message):
        load_dataset("fashion_mnist", None, download=True)


def test_a_root_without_download_is_the_only_source(idx_files: Files, tmp_path: Path) -> None:
    write(tmp_path / "system", idx_files)
    root = write(tmp_path / "root", {})
    message = f"no {IMAGES} in {root} or {root}/FashionMNIST/raw .*dataset-fashion-mnist"
    with pytest.raises(DataError, match=message):
        load_dataset("fashion_mnist", root, download=False)
    assert load_dataset("fashion_mnist", root, download=True).origin == str(tmp_path / "system")
    write(root, {**idx_files, LABELS: b"damaged"})
    with pytest.raises(DataError, match=f"^{root}/{LABELS}"):
        load_dataset("fashion_mnist", root, download=True)


Damage = Callable[[bytes], bytes]
DAMAGES: list[tuple[str, Damage, str]] = [
    (IMAGES, lambda raw: raw + b"x", "71 or more bytes, expected 70"),
    (IMAGES, lambda raw: raw[:3] + b"\4" + raw[4:], "magic 0x00000804, expected 0x00000803"),
    (IMAGES, lambda raw: b"\0\0\x0b" + raw[3:], "magic 0x00000b03, expected 0x00000803"),
    (IMAGES, lambda raw: gzip.compress(raw * 9), "magic 0x1f8b08"),
    (IMAGES, lambda raw: raw[:11] + b"\4" + raw[12:], "holds 6x4x3 values, expected 6x3x3"),
    (LABELS, lambda raw: raw[:-1], "13 bytes, expected 14"),
    (LABELS, lambda raw: raw[:-1] + b"\4", "changed or damaged"),
]


def check_damage(root: Path, files: Files, file: str, damage: Damage, message: str) -> None:
    write(root, {**files, file: damage(files[file])})
    pattern = f"^{root}/{file}: .*{message}.*delete it to fetch it again"
    with pytest.raises(DataError, match=pattern):
        load_dataset("fashion_mnist", root, download=False)


@pytest.mark.parametrize(("file", "damage", "message"), DAMAGES)
def test_a_damaged_file(
    idx_files: Files, tmp_path: Path, file: str, damage: Damage, message: str
) -> None:
    check_damage(tmp_path / "root", idx_files, file, damage, message)


@pytest.mark.parametrize("length", [0, 1, 3, 4, 15, 16, 69])
def test_a_file_that_is_cut_off(idx_files: Files, tmp_path: Path, length: int) -> None:
    message = f"{length} bytes, expected 70"
    check_damage(tmp_path / "root", idx_files, IMAGES, lambda raw: raw[:length], message)


def test_every_flipped_bit_is_detected(idx_files: Files, tmp_path: Path) -> None:
    root = write(tmp_path, idx_files)
    for bit in range(0, 8 * len(idx_files[IMAGES]), 7):
        raw = bytearray(idx_files[IMAGES])
        raw[bit // 8] ^= 1 << bit % 8
        (root / IMAGES).write_bytes(raw)
        with pytest.raises(DataError, match=IMAGES):
            load_dataset("fashion_mnist", root, download=False)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw, "not a gzip file"),
        (lambda raw: gzip.compress(raw)[:30], "not a gzip file, or damaged: .* ended before"),
        (lambda raw: gzip.compress(raw)[:-6] + bytes(6), "not a gzip file, or damaged: CRC"),
        (lambda raw: gzip.compress(raw + bytes(1 << 24)), "71 or more bytes, expected 70"),
        (lambda raw: b"", "0 bytes, expected 70"),
    ],
    ids=["raw", "cut off", "checksum", "bomb", "empty"],
)
def test_a_damaged_gzip_file(
    idx_files: Files, tmp_path: Path, damage: Damage, message: str
) -> None:
    root = write(tmp_path / "root", idx_files)
    (root / IMAGES).unlink()
    (root / f"{IMAGES}.gz").write_bytes(damage(idx_files[IMAGES]))
    with pytest.raises(DataError, match=message):
        load_dataset("fashion_mnist", root, download=False)


def test_a_gzip_file_that_is_not_compressed_is_longer_than_its_content(tmp_path: Path) -> None:
    content = bytes(1 << 24)
    path = tmp_path / "content.gz"
    path.write_bytes(gzip.compress(content, 0))
    assert path.stat().st_size > len(content) + 1024
    assert path.stat().st_size < len(content) * datasets_module.GZIP_OVERHEAD
    assert datasets_module._read_uncompressed(path, 1 << 25) == content


@pytest.mark.parametrize("download", [True, False])
def test_without_a_home_folder(
    idx_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: bool
) -> None:
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # this user is in no list
    with pytest.raises(DataError, match=r"no home folder to keep the files in \(data.root=FOLDER"):
        load_dataset("fashion_mnist", None, download)
    write(tmp_path / "system", compressed(idx_files))
    assert len(load_dataset("fashion_mnist", None, download).train.labels) == 6


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([9, 10, 0], r"origin: label 10 at row 1, classes are 0\.\.9"),
        ([9, 0, -1], "label -1 at row 2"),
        ([9, 0], "2 labels for 3 images"),
    ],
)
def test_labels_out_of_range_or_missing(labels: list[int], message: str) -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match=message):
        validate_labels(images, torch.tensor(labels), catalog.DIGITS, "origin")


def cifar_files(name: str) -> Files:
    """Two images in each file, pickled in the format of CIFAR's authors."""
    random = np.random.default_rng(0)
    key = "labels" if name == "cifar10" else "fine_labels"
    files = {}
    for file in file_names(DATASETS[name]):
        images = random.integers(0, 256, (2, 3072), dtype=np.uint8)
        files[file] = pickle.dumps({"data": images, key: [3, 5]}, protocol=2)
    return files


def file_names(info: DatasetInfo) -> tuple[str, ...]:
    return info.train_files + info.test_files


def archive_file(info: DatasetInfo, files: Files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for file, raw in files.items():
            entry = tarfile.TarInfo(f"{info.folder}/{file}")
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    return stream.getvalue()


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("cifar100", 2)])
def test_cifar(name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = DATASETS[name]
    folder = tmp_path / info.folder
    files = cifar_files(name)
    archive = archive_file(info, files | {"../outside": b"x"})
    set_checksums(monkeypatch, name, files | {info.archive: archive}, uncompressed=False)
    requests = serve(monkeypatch, {info.archive: archive})
    loaded = load_dataset(name, tmp_path, download=True)
    assert requests == [info.archive]
    assert not (tmp_path / "outside").exists()
    extracted = sorted(path.name for path in folder.iterdir())
    assert extracted == sorted([".download.lock", *files])
    hashes = {file: hashlib.sha256(raw).hexdigest() for file, raw in files.items()}
    assert loaded.fingerprint == hashes
    assert loaded.train.images.shape == (count, 3, 32, 32)
    assert loaded.train.labels.tolist() == [3, 5] * (count // 2)
    first = pickle.loads(files[info.train_files[0]])["data"][0]
    assert loaded.train.images[0].flatten().tolist() == first.tolist()
    assert_same(load_dataset(name, folder, download=False), loaded)
    (folder / info.test_files[0]).unlink()  # as if killed while extracting
    assert_same(load_dataset(name, tmp_path, download=True), loaded)
    assert requests == [info.archive]
    for file, raw in files.items():
        (folder / file).unlink()
        (folder / f"{file}.gz").write_bytes(gzip.compress(raw))
    assert_same(load_dataset(name, folder, download=False), loaded)


class Attack:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, ("attacked", "w")


def test_a_foreign_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {file: pickle.dumps(Attack()) for file in file_names(DATASETS["cifar100"])}
    root = write(tmp_path / "root", files)
    message = r"train: md5 .* expected 16019d7e3df5f24257cddd939b257f8d"
    with pytest.raises(DataError, match=message):
        load_dataset("cifar100", root, download=False)
    assert not Path("attacked").exists()


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / DATASETS["cifar100"].archive).write_bytes(b"not an archive")
    message = (
        r"cifar-100-python\.tar\.gz: md5 \w+, expected eb90\w+ \(delete it to fetch it again\)"
    )
    with pytest.raises(DataError, match=message):
        load_dataset("cifar100", tmp_path, download=True)


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"):
        load_dataset("cifar100", tmp_path / "file", download=True)


def test_digits() -> None:
    loaded = load_dataset("digits", None, download=False)
    info = DATASETS["digits"]
    assert len(loaded.train.images) == info.train_images
    assert len(loaded.test.images) == info.test_images
    assert loaded.train.images.shape[1:] == (info.channels, info.size, info.size)
    assert loaded.train.images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    # A fifth of the 174 to 183 images of a class.
    assert set(loaded.test.labels.bincount().tolist()) <= {35, 36, 37}
    assert loaded.fingerprint["digits"].startswith("0b7e9c3202d7bcd2")
    assert loaded.origin == "scikit-learn"


def test_the_test_set_of_digits_is_fixed() -> None:
    """Another test set would make results incomparable."""
    loaded = load_dataset("digits", None, download=False)
    sha256 = hashlib.sha256(loaded.test.images.numpy().data).hexdigest()
    assert sha256.startswith("26401cbf1df57c36")


def test_synthetic_images_are_fixed() -> None:
    loaded = synthetic_dataset(100, 5, 3, 8)
    assert_same(loaded, synthetic_dataset(100, 5, 3, 8))
    other_seed = synthetic_dataset(100, 5, 3, 8, seed=1)
    assert not torch.equal(loaded.train.images, other_seed.train.images)
    assert not torch.equal(loaded.test.images, other_seed.test.images)


def test_synthetic_images_can_be_learned() -> None:
    loaded = synthetic_dataset(100, 5, 3, 8)
    train = loaded.train
    test = loaded.test
    assert train.images.shape == (100, 3, 8, 8)
    assert len(test.images) == 20
    assert test.classes == tuple("01234")
    centers = []
    for label in range(5):
        centers.append(train.images[train.labels == label].double().mean(0).flatten())
    distances = torch.cdist(test.images.double().flatten(1), torch.stack(centers))
    assert torch.equal(distances.argmin(1), test.labels)


@pytest.mark.parametrize("module", [catalog, download, datasets_module, split])
def test_checks_do_not_depend_on_assert(module: Any) -> None:
    """`python -O` leaves asserts out."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]
