"""The readers on the real Fashion-MNIST and on small sets in the true formats, whole and damaged."""

import ast
import dataclasses
import gzip
import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
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
    assert loaded.origin == str(SYSTEM)
    assert loaded.fingerprint == {
        file: digest.hex for file, digest in DATASETS["fashion_mnist"].digests.items()
    }
    for part, count in ((loaded.train, 60_000), (loaded.test, 10_000)):
        assert part.images.shape == (count, 1, 28, 28) and part.images.dtype == torch.uint8
        assert (
            part.labels.bincount().tolist() == [count // 10] * 10
            and part.labels.dtype == torch.int64
        )
    assert (
        round(
            int(loaded.train.images.sum(dtype=torch.int64)) / loaded.train.images.numel() / 255, 5
        )
        == 0.28604
    )


# ---------------------------------------------------------------------------------------------- IDX


def idx(values: np.ndarray) -> bytes:
    return (
        b"".join(number.to_bytes(4, "big") for number in (0x0800 + values.ndim, *values.shape))
        + values.tobytes()
    )


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Files:
    """Six and four pictures of 3x3; fashion_mnist and its system folder are made to fit them."""
    random = np.random.default_rng(0)
    files: Files = {}
    for (images, labels), count in ((IDX_TRAIN, 6), (IDX_TEST, 4)):
        files[images] = idx(random.integers(0, 256, (count, 3, 3), dtype=np.uint8))
        files[labels] = idx(np.arange(count, dtype=np.uint8))
    small: dict[str, Any] = {
        "size": 3,
        "train_images": 6,
        "test_images": 4,
        "system": str(tmp_path / "system"),
    }
    pin(monkeypatch, "fashion_mnist", files, inside=True, **small)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files


def pin(
    monkeypatch: pytest.MonkeyPatch, name: str, files: Files, inside: bool, **changes: Any
) -> None:
    digests = {
        file: Checksum("sha256", hashlib.sha256(raw).hexdigest(), inside)
        for file, raw in files.items()
    }
    monkeypatch.setitem(
        DATASETS, name, dataclasses.replace(DATASETS[name], digests=digests, **changes)
    )


def write(folder: Path, files: Files, packed: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for file, raw in files.items():
        (folder / (f"{file}.gz" if packed else file)).write_bytes(
            gzip.compress(raw) if packed else raw
        )
    return folder


def serve(monkeypatch: pytest.MonkeyPatch, files: Files) -> list[str]:
    """Puts files where downloads come from; returns the list of what is asked for."""
    asked: list[str] = []

    def pieces(url: str, size_cap: int, silence: float) -> list[bytes]:
        asked.append(url.rsplit("/", 1)[1])
        return [files[asked[-1]]]

    monkeypatch.setattr(download, "_read_chunks", pieces)
    return asked


def same(one: DatasetSplits, other: DatasetSplits) -> bool:
    pairs = ((one.train, other.train), (one.test, other.test))
    equal = all(
        torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs
    )
    return equal and one.fingerprint == other.fingerprint


def test_layouts_hold_the_same(whole: Files, tmp_path: Path) -> None:
    raw = load_dataset("fashion_mnist", write(tmp_path / "raw", whole), download=False)
    assert raw.train.images.numpy().tobytes() == whole[IMAGES][16:]
    assert raw.train.images.shape == (6, 1, 3, 3) and raw.test.labels.tolist() == [0, 1, 2, 3]
    write(tmp_path / "torchvision" / "FashionMNIST" / "raw", whole)
    write(tmp_path / "packed", whole, packed=True)
    write(tmp_path / "system", whole, packed=True)
    for root in (tmp_path / "torchvision", tmp_path / "packed", None):
        assert same(raw, load_dataset("fashion_mnist", root, download=False))
    theirs = datasets.FashionMNIST(tmp_path / "torchvision", train=False)
    assert torch.equal(theirs.data, raw.test.images[:, 0]) and torch.equal(
        theirs.targets, raw.test.labels
    )


def test_download_fills_the_root_or_the_cache(
    whole: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, {f"{file}.gz": gzip.compress(raw) for file, raw in whole.items()})
    root = write(tmp_path / "root", {IMAGES: whole[IMAGES]})
    first = load_dataset("fashion_mnist", root, download=True)
    assert first.origin == str(root) and sorted(asked) == sorted(
        f"{file}.gz" for file in whole if file != IMAGES
    )
    asked.clear()
    cached = load_dataset("fashion_mnist", None, download=True)
    assert cached.origin == str(tmp_path / "cache" / "vggexp" / "fashion_mnist") and len(asked) == 4
    assert (
        same(first, cached)
        and same(first, load_dataset("fashion_mnist", None, download=False))
        and len(asked) == 4
    )


def test_no_network(whole: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    def unplugged(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", unplugged)
    with pytest.raises(
        DataError, match=r"^cannot fetch https://.*: Network is unreachable.*, or apt-get install"
    ):
        load_dataset("fashion_mnist", None, download=True)


def test_a_root_is_not_replaced_behind_its_owner(whole: Files, tmp_path: Path) -> None:
    write(tmp_path / "system", whole)
    root = write(tmp_path / "root", {})
    with pytest.raises(
        DataError, match=f"no {IMAGES} in {root} or {root}/FashionMNIST/raw .*dataset-fashion-mnist"
    ):
        load_dataset("fashion_mnist", root, download=False)
    assert load_dataset("fashion_mnist", root, download=True).origin == str(tmp_path / "system")
    write(root, {**whole, LABELS: b"damaged"})
    with pytest.raises(DataError, match=f"^{root}/{LABELS}"):
        load_dataset("fashion_mnist", root, download=True)


DAMAGE: list[tuple[str, Callable[[bytes], bytes], str]] = [
    (IMAGES, lambda raw: raw + b"x", "70 bytes wanted, 71 or more found"),
    (IMAGES, lambda raw: raw[:3] + b"\4" + raw[4:], "magic 0x00000804, wanted 0x00000803"),
    (IMAGES, lambda raw: b"\0\0\x0b" + raw[3:], "magic 0x00000b03, wanted 0x00000803"),
    (IMAGES, lambda raw: gzip.compress(raw * 9), "magic 0x1f8b08"),
    (IMAGES, lambda raw: raw[:11] + b"\4" + raw[12:], "holds 6x4x3 values, wanted 6x3x3"),
    (LABELS, lambda raw: raw[:-1], "14 bytes wanted, 13 found"),
    (LABELS, lambda raw: raw[:-1] + b"\4", "changed or damaged"),
    *(
        (IMAGES, lambda raw, at=at: raw[:at], f"70 bytes wanted, {at} found")
        for at in (0, 1, 3, 4, 15, 16, 69)
    ),
]


@pytest.mark.parametrize(("file", "damage", "told"), DAMAGE)
def test_damaged(
    whole: Files, tmp_path: Path, file: str, damage: Callable[[bytes], bytes], told: str
) -> None:
    root = write(tmp_path / "root", {**whole, file: damage(whole[file])})
    with pytest.raises(DataError, match=f"^{root}/{file}: .*{told}.*delete it to fetch it again"):
        load_dataset("fashion_mnist", root, download=False)


def test_every_flipped_bit_is_found(whole: Files, tmp_path: Path) -> None:
    root = write(tmp_path, whole)
    for bit in range(0, 8 * len(whole[IMAGES]), 7):
        raw = bytearray(whole[IMAGES])
        raw[bit // 8] ^= 1 << bit % 8
        (root / IMAGES).write_bytes(raw)
        with pytest.raises(DataError, match=IMAGES):
            load_dataset("fashion_mnist", root, download=False)


@pytest.mark.parametrize(
    ("packed", "told"),
    [
        (lambda raw: raw, "not a gzip file"),
        (lambda raw: gzip.compress(raw)[:30], "70 bytes wanted, [0-9]+ found"),
        (lambda raw: gzip.compress(raw + bytes(1 << 24)), "70 bytes wanted, 71 or more found"),
        (lambda raw: b"", "70 bytes wanted, 0 found"),
    ],
    ids=["raw", "cut", "bomb", "empty"],
)
def test_damaged_gzip(
    whole: Files, tmp_path: Path, packed: Callable[[bytes], bytes], told: str
) -> None:
    root = write(tmp_path / "root", whole)
    (root / IMAGES).rename(root / f"{IMAGES}.gz")
    (root / f"{IMAGES}.gz").write_bytes(packed(whole[IMAGES]))
    with pytest.raises(DataError, match=told):
        load_dataset("fashion_mnist", root, download=False)


def test_labels_out_of_range_or_missing() -> None:
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(DataError, match=r"here: label 10 at row 1, classes are 0\.\.9"):
        validate_labels(images, torch.tensor([9, 10, 0]), catalog.DIGITS, "here")
    with pytest.raises(DataError, match=r"label -1 at row 2"):
        validate_labels(images, torch.tensor([9, 0, -1]), catalog.DIGITS, "here")
    with pytest.raises(DataError, match="2 labels for 3 images"):
        validate_labels(images, torch.tensor([9, 0]), catalog.DIGITS, "here")


# -------------------------------------------------------------------------------------------- CIFAR


def batches(name: str) -> Files:
    """Two pictures a file, pickled as the authors did."""
    random = np.random.default_rng(0)
    facts, key = DATASETS[name], "labels" if name == "cifar10" else "fine_labels"
    made = {
        file: {"data": random.integers(0, 256, (2, 3072), dtype=np.uint8), key: [3, 5]}
        for file in _files(facts)
    }
    return {file: pickle.dumps(batch, protocol=2) for file, batch in made.items()}


def _files(facts: DatasetInfo) -> tuple[str, ...]:
    return facts.train_files + facts.test_files


def archive_of(facts: DatasetInfo, files: Files) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for file, raw in {f"{facts.folder}/{file}": raw for file, raw in files.items()}.items():
            entry = tarfile.TarInfo(file)
            entry.size = len(raw)
            tar.addfile(entry, io.BytesIO(raw))
    return stream.getvalue()


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("cifar100", 2)])
def test_cifar(name: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, files = DATASETS[name], batches(name)
    archive = archive_of(facts, files | {"../outside": b"x"})
    pin(monkeypatch, name, files | {facts.archive: archive}, inside=False)
    asked = serve(monkeypatch, {facts.archive: archive})
    fetched = load_dataset(name, tmp_path, download=True)
    assert asked == [facts.archive] and not (tmp_path / "outside").exists()
    assert sorted(path.name for path in (tmp_path / facts.folder).iterdir()) == sorted(
        [".download.lock", *files]
    )
    assert fetched.fingerprint == {
        file: hashlib.sha256(raw).hexdigest() for file, raw in files.items()
    }
    assert fetched.train.images.shape == (count, 3, 32, 32) and fetched.train.labels.tolist() == [
        3,
        5,
    ] * (count // 2)
    assert same(fetched, load_dataset(name, tmp_path / facts.folder, download=False))
    first = pickle.loads(files[facts.train_files[0]])["data"][0]
    assert fetched.train.images[0].flatten().tolist() == first.tolist()
    (tmp_path / facts.folder / facts.test_files[0]).unlink()  # as if killed while unpacking
    assert same(fetched, load_dataset(name, tmp_path, download=True)) and asked == [facts.archive]


class Attack:
    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return open, ("attacked", "w")


def test_a_foreign_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {file: pickle.dumps(Attack()) for file in _files(DATASETS["cifar100"])}
    with pytest.raises(DataError, match=r"train: md5 .* wanted 16019d7e3df5f24257cddd939b257f8d"):
        load_dataset("cifar100", write(tmp_path / "root", files), download=False)
    assert not Path("attacked").exists()


def test_a_damaged_archive(tmp_path: Path) -> None:
    for raw in (b"not an archive", archive_of(DATASETS["cifar100"], {"train": b""})):
        (tmp_path / DATASETS["cifar100"].archive).write_bytes(raw)
        with pytest.raises(DataError, match=r"cifar-100-python\.tar\.gz: not the archive"):
            load_dataset("cifar100", tmp_path, download=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ResourceError, match="cannot be written"):
        load_dataset("cifar100", tmp_path / "file", download=True)


# ---------------------------------------------------------------------------------- made, not stored


def test_digits() -> None:
    loaded, facts = load_dataset("digits", None, download=False), DATASETS["digits"]
    assert (len(loaded.train.images), len(loaded.test.images)) == (
        facts.train_images,
        facts.test_images,
    )
    assert loaded.train.images.shape[1:] == (facts.channels, facts.size, facts.size)
    assert loaded.train.images.unique().tolist() == [round(value * 255 / 16) for value in range(17)]
    assert set(loaded.test.labels.bincount().tolist()) <= {
        35,
        36,
        37,
    }  # of 174..183 a class, a fifth
    assert (
        loaded.fingerprint["digits"].startswith("0b7e9c3202d7bcd2")
        and loaded.origin == "scikit-learn"
    )
    chosen = hashlib.sha256(loaded.test.images.numpy().data).hexdigest()
    assert chosen.startswith("26401cbf1df57c36")  # another test set would make results incomparable


def test_synthetic_is_fixed_and_can_be_learned() -> None:
    loaded = synthetic_dataset(100, 5, 3, 8)
    assert same(loaded, synthetic_dataset(100, 5, 3, 8)) and not same(
        loaded, synthetic_dataset(100, 5, 3, 8, seed=1)
    )
    train, test = loaded.train, loaded.test
    assert (
        train.images.shape == (100, 3, 8, 8)
        and len(test.images) == 20
        and test.classes == tuple("01234")
    )
    centres = torch.stack(
        [train.images[train.labels == label].double().mean(0) for label in range(5)]
    )
    nearest = torch.cdist(test.images.double().flatten(1), centres.flatten(1)).argmin(1)
    assert torch.equal(nearest, test.labels)


def test_the_table() -> None:
    for facts in DATASETS.values():
        files = (*_files(facts), *([facts.archive] if facts.archive else []))
        assert sorted(files) == sorted(facts.digests) and len(set(facts.classes)) == len(
            facts.classes
        )
        lengths = {digest.algorithm: len(digest.hex) for digest in facts.digests.values()}
        assert lengths.items() <= {"sha256": 64, "md5": 32}.items()
        assert all(
            mirror.startswith("https://") and mirror.endswith("/") for mirror in facts.mirrors
        )
    published = {
        name: kind
        for name, kind in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100))
    }
    for name, kind in published.items():
        theirs = dict(
            [*map(tuple, kind.train_list + kind.test_list), (kind.filename, kind.tgz_md5)]
        )
        assert {file: digest.hex for file, digest in DATASETS[name].digests.items()} == theirs
    assert DATASETS["fashion_mnist"].classes == tuple(datasets.FashionMNIST.classes)


def test_checks_hold_without_asserts() -> None:
    for module in (catalog, download, datasets_module, split):
        tree = ast.parse(Path(str(module.__file__)).read_text("utf-8"))
        assert not [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Assert)]


def test_the_catalogue_needs_no_torch() -> None:
    program = "import sys, vggexp.data.catalog, vggexp.data.download; sys.exit(bool({'torch', 'numpy'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
