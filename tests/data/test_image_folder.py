"""Indexes folders of images."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from tests.permissions import without_root_rights
from vggexp.data.catalog import folder_classes
from vggexp.data.image_file import read_image
from vggexp.data.image_folder import (
    cached_reads,
    expand_image_paths,
    index_folder,
)
from vggexp.errors import DataError, ResourceError

Files = dict[str, bytes]

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for file in (
        "train/b/1.jpg",
        "train/b/deep/2.PNG",
        "train/a/3.jpeg",
        "test/a/4.bmp",
        "test/b/5.webp",
    ):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        IMAGE.save(tmp_path / file)
    (tmp_path / "train" / "b" / "notes.txt").write_bytes(b"")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def test_index(folder: Path) -> None:
    index = index_folder(folder)
    assert index.train.classes == index.test.classes
    assert index.test.classes == folder_classes(folder)
    assert folder_classes(folder) == ("a", "b")
    (folder / "train" / ".cache").rmdir()  # torchvision would take it for a class
    expected = datasets.ImageFolder(str(folder / "train"))
    samples = zip(map(str, index.train.paths), index.train.labels, strict=True)
    assert list(samples) == expected.samples
    (folder / "test").rename(folder / "val")
    renamed = index_folder(folder)
    assert renamed.fingerprint == {
        "train": index.fingerprint["train"],
        "val": index.fingerprint["test"],
    }
    (folder / "train" / "a" / "3.jpeg").write_bytes(b"longer or shorter")
    assert index_folder(folder).fingerprint["train"] != index.fingerprint["train"]


def test_hidden_names_are_passed_over_and_what_is_left_out_is_said(folder: Path) -> None:
    before = index_folder(folder)
    assert before.origin == f"{folder}; left out: 1 hidden, 1 .txt"
    train = folder / "train"
    (train / "a" / ".ipynb_checkpoints").mkdir()
    IMAGE.save(train / "a" / ".ipynb_checkpoints" / "3.png")
    (train / "a" / "._3.jpeg").write_bytes(b"of macOS")
    (folder / "test" / "b" / "6.GIF").write_bytes(b"")
    (train / "7.png").write_bytes(b"in no class")
    (train / "b" / "README").write_bytes(b"")
    (folder / "val").mkdir()
    (folder / "valid").mkdir()
    after = index_folder(folder)
    assert after.train.paths == before.train.paths
    assert after.fingerprint == before.fingerprint
    assert after.origin.startswith(f"{folder}; left out: ")
    assert set(after.origin.partition("left out: ")[2].split(", ")) == {
        "3 hidden",
        "1 .txt",
        "1 .gif",
        "1 .png",
        "1 without suffix",
        "val",
        "valid",
    }


def test_only_regular_files_are_images(folder: Path) -> None:
    before = index_folder(folder)
    os.mkfifo(folder / "train" / "a" / "pipe.png")
    (folder / "test" / "a" / "device.png").symlink_to("/dev/zero")
    (folder / "train" / "b" / "folder.png").mkdir()
    after = index_folder(folder)
    assert after.train.paths == before.train.paths
    assert after.fingerprint == before.fingerprint
    assert "2 not a regular file" in after.origin
    with pytest.raises(DataError, match=r"pipe.png: cannot be read: not a regular file$"):
        expand_image_paths([folder / "train" / "a" / "pipe.png"])


@pytest.mark.parametrize("path", ["train/a", "test", "train/b"])
def test_a_folder_without_permission_is_no_damage(path: str, folder: Path) -> None:
    (folder / path).chmod(0)
    with without_root_rights(), pytest.raises(ResourceError, match=f"{path}.*Permission denied"):
        index_folder(folder)
    (folder / path).chmod(0o755)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc/self/mem, whose first page fails")
def test_a_file_whose_disk_fails_is_named(folder: Path) -> None:
    (folder / "train" / "a" / "bad.png").symlink_to("/proc/self/mem")
    with pytest.raises(ResourceError, match=r"a/bad\.png: cannot be read: Input/output error$"):
        index_folder(folder)


@pytest.mark.parametrize("name", [b"caf\xe9", "café".encode()])
def test_a_name_may_be_any_bytes(folder: Path, name: bytes) -> None:
    for part in ("train", "test"):
        (folder / part / "a").rename(folder / part / os.fsdecode(name))
    (folder / "train" / "b" / "1.jpg").rename(folder / "train" / "b" / os.fsdecode(name + b".jpg"))
    index = index_folder(folder)
    text = name.decode("utf-8", "backslashreplace")
    assert index.train.classes == index.test.classes == ("b", text)
    assert {read_image(path).shape for path in index.train.paths} == {(3, 6, 9)}


def test_a_check_and_its_run_share_a_listing(folder: Path) -> None:
    with cached_reads():
        first = index_folder(folder)
        (folder / "train" / "b" / "1.jpg").unlink()
        with cached_reads():
            assert index_folder(folder) is first
    assert len(index_folder(folder).train.paths) == len(first.train.paths) - 1


def test_nothing_left_out_is_not_said(folder: Path) -> None:
    (folder / "train" / ".cache").rmdir()
    (folder / "train" / "b" / "notes.txt").unlink()
    assert index_folder(folder).origin == str(folder)


def test_links_are_followed_as_by_torchvision(folder: Path) -> None:
    (folder / "train" / ".cache").rmdir()
    (folder / "train" / "a" / "more").symlink_to(folder / "test" / "a")
    (folder / "train" / "b" / "more").symlink_to("deep")
    (folder / "train" / "b" / "again.png").symlink_to(folder / "train" / "b" / "1.jpg")
    expected = datasets.ImageFolder(str(folder / "train"))
    index = index_folder(folder)
    samples = zip(map(str, index.train.paths), index.train.labels, strict=True)
    assert sorted(samples) == sorted(expected.samples)
    assert len(index.train.paths) == 6


@pytest.mark.parametrize("target", [".", "..", "../../train/b", "../b/deep/back"])
def test_a_link_that_leads_back_is_refused(folder: Path, target: str) -> None:
    (folder / "train" / "b" / "deep" / "back").symlink_to("../../a")
    (folder / "train" / "a" / "link").symlink_to(target)
    if target == "../../train/b":
        pattern = "train/a/link/deep/back"
    else:
        pattern = "train/a/link"
    with pytest.raises(DataError, match=f"{pattern}: a link to a folder that it is in; remove it"):
        index_folder(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "train").rename(root / "x"),
            "holds test; needs train and test",
        ),
        (lambda root: (root / "test").rename(root / "Test"), "holds Test, train; needs train and"),
        (lambda root: (root / "test").rename(root / "valid"), "holds train, valid; needs"),
        (
            lambda root: (root / "train" / "b").rename(root / "train" / ".b"),
            "train: holds a single class folder, a; at least 2",
        ),
        (lambda root: (root / "train" / "c").mkdir(), "test: class 'c' is not in both"),
        (
            lambda root: [(root / part / "c").mkdir() for part in ("train", "test")],
            "train/c: holds no images",
        ),
        (lambda root: (root / "test" / "b" / "5.webp").unlink(), "test/b: holds no images"),
        (
            lambda root: (root / "train" / "a" / "gone.jpg").symlink_to("nowhere"),
            "gone.jpg: cannot be read",
        ),
    ],
)
def test_unusable_folder(folder: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(folder)
    with pytest.raises(DataError, match=message):
        index_folder(folder)


@pytest.fixture
def unsplit(tmp_path: Path) -> Path:
    """Ten images of one class, two of another, and a single image of a third."""
    for name, count in {"many": 10, "one": 1, "two": 2}.items():
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(count):
            IMAGE.save(tmp_path / "pictures" / name / f"{number}.png")
    return tmp_path / "pictures"


def test_a_folder_of_classes_is_split(unsplit: Path) -> None:
    index = index_folder(unsplit)
    assert index.train.classes == index.test.classes == ("many", "one", "two")
    assert index.train.labels == [0] * 8 + [1] + [2]
    assert index.test.labels == [0] * 2 + [2]
    assert not {*index.train.paths} & {*index.test.paths}
    assert index.origin == (
        f"{unsplit}; no test folder: 0.2 of each class for the test; without a test image: one"
    )
    half = index_folder(unsplit, 0.5)
    assert half.test.labels == [0] * 5 + [2]
    assert {*index.test.paths} < {*half.test.paths}
    assert half.fingerprint.keys() == {"train", "test"}
    assert not {*half.fingerprint.values()} & {*index.fingerprint.values()}


def test_the_split_follows_from_the_names(unsplit: Path, monkeypatch) -> None:
    index = index_folder(unsplit)
    names = [path.relative_to(unsplit) for path in index.test.paths]
    assert [*map(str, names)] == ["many/8.png", "many/9.png", "two/1.png"]
    moved = unsplit.rename(unsplit.parent / "moved")
    (moved / ".hidden").mkdir()
    (moved / "README.md").write_text("")
    monkeypatch.chdir(moved)
    for root in (Path("."), Path("../moved"), moved):
        again = index_folder(root)
        assert [path.resolve().relative_to(moved) for path in again.test.paths] == names
        assert again.fingerprint == index.fingerprint
        assert again.origin.endswith("; left out: 1 hidden, 1 .md")
    whole = moved.parent / "whole"
    whole.mkdir()
    moved.rename(whole / "train")
    (whole / "extra").mkdir()
    assert index_folder(whole).fingerprint == index.fingerprint
    assert index_folder(whole).origin.endswith("; left out: 1 hidden, 1 .md, extra")


def test_a_test_folder_is_taken_whole(folder: Path) -> None:
    assert index_folder(folder, 0.5).fingerprint == index_folder(folder).fingerprint


def test_a_folder_of_single_images_is_refused(unsplit: Path) -> None:
    for path in unsplit.glob("*/[1-9].png"):
        path.unlink()
    with pytest.raises(DataError, match="every class has a single image, so none is left for"):
        index_folder(unsplit)
