"""The catalog agrees with torchvision's data sets, and needs no torch."""

import subprocess
import sys
from pathlib import Path

import pytest
from torchvision import datasets

from vggexp.data.catalog import DATASETS, folder_classes
from vggexp.errors import DataError


@pytest.mark.parametrize("name", DATASETS)
def test_every_file_has_a_checksum(name: str) -> None:
    info = DATASETS[name]
    files = [*info.train_files, *info.test_files]
    if info.archive:
        files.append(info.archive)
    assert sorted(files) == sorted(info.checksums)
    for checksum in info.checksums.values():
        assert len(checksum.hex) == {"sha256": 64, "md5": 32}[checksum.algorithm]


@pytest.mark.parametrize("name", DATASETS)
def test_classes_are_distinct(name: str) -> None:
    classes = DATASETS[name].classes
    assert len(set(classes)) == len(classes)


@pytest.mark.parametrize("name", DATASETS)
def test_mirrors_are_encrypted(name: str) -> None:
    for mirror in DATASETS[name].mirrors:
        assert mirror.startswith("https://")
        assert mirror.endswith("/")


@pytest.mark.parametrize(
    ("name", "dataset"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)]
)
def test_checksums_of_cifar_are_torchvisions(name: str, dataset: type) -> None:
    expected = dict(map(tuple, dataset.train_list + dataset.test_list))
    expected[dataset.filename] = dataset.tgz_md5
    checksums = {file: checksum.hex for file, checksum in DATASETS[name].checksums.items()}
    assert checksums == expected


def test_classes_of_fashion_mnist_are_torchvisions() -> None:
    assert DATASETS["fashion_mnist"].classes == tuple(datasets.FashionMNIST.classes)


def test_a_folder_without_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: holds no class folders"):
        folder_classes(tmp_path)


@pytest.mark.process
def test_catalog_and_download_need_no_torch() -> None:
    program = """
import sys, vggexp.data.catalog, vggexp.data.download
sys.exit(bool({"torch", "numpy"} & {*sys.modules}))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
