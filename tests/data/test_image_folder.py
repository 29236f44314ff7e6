"""Indexes folders of images, and reads intact and damaged images of every format."""

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from tests.permissions import without_root_rights
from vggexp.data.catalog import folder_classes
from vggexp.data.image_folder import (
    expand_image_paths,
    index_folder,
    list_folders_once,
    read_image,
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
    with list_folders_once():
        first = index_folder(folder)
        (folder / "train" / "b" / "1.jpg").unlink()
        with list_folders_once():
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


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_read_image(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    if mode == "I;16":
        values = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200
        Image.fromarray(values).save(path)
        expected = np.repeat((values // 256)[..., None], 3, axis=2)
    else:
        image = IMAGE.convert(mode)
        image.save(path)
        expected = np.asarray(image.convert("RGB"))
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 6, 9)
    assert image.permute(1, 2, 0).tolist() == expected.tolist()


def test_upright_and_first_frame(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter to the left
    IMAGE.save(tmp_path / "turned.png", exif=exif)
    IMAGE.save(tmp_path / "moving.png", save_all=True, append_images=[IMAGE.rotate(180)])
    IMAGE.save(tmp_path / "still.png")
    still = read_image(tmp_path / "still.png")
    assert torch.equal(read_image(tmp_path / "turned.png"), still.rot90(-1, (1, 2)))
    assert torch.equal(read_image(tmp_path / "moving.png"), still)


def write_gray_tiff(
    path: Path, values: np.ndarray, bits: int, photometric: int = 1, more: bytes = b""
) -> None:
    """Writes a gray image as a TIFF file; PIL writes no such files.

    Args:
        values: Pixels [H, W], or the bytes of two pixels of 12 bits in a row of three.
        more: One more entry, of a tag above 339.
    """
    height = len(values)
    tags = {
        256: values.nbytes * 8 // bits // height,  # width
        257: height,
        258: bits,
        259: 1,  # not compressed
        262: photometric,
        273: 8,  # where the pixels begin
        277: 1,  # channels
        278: height,
        279: values.nbytes,
        339: {"u": 1, "i": 2, "f": 3}[values.dtype.kind],
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    count = struct.pack("<H", len(tags) + len(more) // 12)
    header = struct.pack("<2sHI", b"II", 42, 8 + values.nbytes)
    path.write_bytes(header + values.tobytes() + count + entries + more + bytes(4))


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "uint32", "float32"])
def test_pixels_of_unknown_range_are_refused(tmp_path: Path, dtype: str) -> None:
    values = np.arange(54).reshape(6, 9).astype(dtype)
    path = tmp_path / "image.tif"
    write_gray_tiff(path, values, 8 * values.itemsize)
    with pytest.raises(DataError, match=f"^{path}: pixels are .*save it with 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint64"])
def test_a_tiff_that_pil_does_not_know_is_called_one(tmp_path: Path, dtype: str) -> None:
    values = np.arange(54).reshape(6, 9).astype(dtype)
    path = tmp_path / "image.tif"
    write_gray_tiff(path, values, 8 * values.itemsize)
    reason = r"a TIFF that is damaged or has an unsupported pixel format \(save it with 8 or 16"
    with pytest.raises(DataError, match=f"^{path}: {reason}"):
        read_image(path)
    with pytest.raises(DataError, match=f"^{path}: {reason}"):
        expand_image_paths([path])


@pytest.mark.parametrize("photometric", [0, 1])
def test_gray_tiff_of_16_bits(tmp_path: Path, photometric: int) -> None:
    values = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200 + 77
    write_gray_tiff(tmp_path / "image.tif", values, 16, photometric)
    expected = (values if photometric else 65535 - values) // 256
    for channel in read_image(tmp_path / "image.tif"):
        assert channel.tolist() == expected.tolist()


def test_gray_tiff_of_12_bits(tmp_path: Path) -> None:
    values = np.arange(0, 4096, 64).reshape(8, 8)
    first, second = values.reshape(-1, 2).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    write_gray_tiff(tmp_path / "image.tif", packed.astype(np.uint8).reshape(8, 12), 12)
    assert read_image(tmp_path / "image.tif")[0].tolist() == (values // 16).tolist()


@pytest.mark.parametrize("value", [0, 0x7FFFFFFF, 300])
def test_a_tiff_whose_exif_data_is_damaged(tmp_path: Path, value: int) -> None:
    values = np.arange(54, dtype=np.uint8).reshape(6, 9)
    more = struct.pack("<HHII", 34665, 4, 1, value)  # where the EXIF data begins
    write_gray_tiff(tmp_path / "image.tif", values, 8, more=more)
    assert read_image(tmp_path / "image.tif")[0].tolist() == values.tolist()


def make_exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Returns EXIF data with entries of tag, type, count and the bytes of the value."""
    rows = [struct.pack("<HHI4s", *entry) for entry in entries]
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(rows)) + b"".join(rows) + bytes(4)


TURNED = (274, 3, 1, b"\6")


@pytest.mark.parametrize(
    ("exif", "turns"),
    [
        (make_exif(TURNED), 1),
        (make_exif(TURNED, (282, 2, 3, b"72")), 1),  # a resolution stored as text
        (make_exif(TURNED, (34665, 4, 1, b"\xff\xff\xff\x7f")), 1),  # the rest is out of the file
        (make_exif(TURNED, (282, 5, 1, b"\xff\xff\xff\x7f")), 1),
        (make_exif(TURNED, (700, 99, 1 << 30, b"")), 1),  # no such type
        (make_exif((274, 2, 2, b"6")), 0),  # an orientation stored as text
        (make_exif((274, 3, 1, b"\x63")), 0),
        (make_exif(TURNED)[:20], 0),
        (b"Exif\0\0", 0),
        (b"Exif\0\0nothing of the kind", 0),
    ],
)
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_of_exif_data_only_the_orientation_is_read(
    tmp_path: Path, exif: bytes, turns: int, kind: str
) -> None:
    IMAGE.save(tmp_path / f"still.{kind}")
    IMAGE.save(tmp_path / f"image.{kind}", exif=exif)
    expected = read_image(tmp_path / f"still.{kind}").rot90(-turns, (1, 2))
    assert torch.equal(read_image(tmp_path / f"image.{kind}"), expected)


def damaged_images() -> Files:
    stream = io.BytesIO()
    IMAGE.resize((200, 200)).save(stream, "png")
    png = stream.getvalue()
    huge = png[:16] + (100_000).to_bytes(4, "big") * 2 + png[24:]
    large = png[:16] + (9_000).to_bytes(4, "big") * 2 + png[24:]
    return {
        "empty": b"",
        "cut": png[: len(png) // 2],
        "text": b"hello",
        "huge": set_checksum(huge),
        "large": set_checksum(large),
    }


@pytest.mark.parametrize(("width", "height"), [(257, 1), (1, 60_000_000)])
def test_a_long_image_is_refused(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "long.png"
    stream = io.BytesIO()
    IMAGE.save(stream, "png")
    png = stream.getvalue()
    size = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    path.write_bytes(set_checksum(png[:16] + size + png[24:]))
    message = f"^{path}: {width}x{height} pixels, one side is more than 256 times the other$"
    with pytest.raises(DataError, match=message):
        read_image(path)


def test_an_image_may_be_256_times_as_long_as_it_is_wide(tmp_path: Path) -> None:
    IMAGE.resize((2, 512)).save(tmp_path / "long.png")
    assert read_image(tmp_path / "long.png").shape == (3, 512, 2)


def set_checksum(png: bytes) -> bytes:
    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4, "big") + png[33:]


@pytest.mark.parametrize(("name", "raw"), damaged_images().items(), ids=damaged_images())
def test_an_unreadable_image(tmp_path: Path, name: str, raw: bytes) -> None:
    path = tmp_path / f"{name}.png"
    path.write_bytes(raw)
    reasons = "not an image|cannot be decoded|9000x9000 pixels"
    with pytest.raises(DataError, match=f"^{path}: ({reasons})") as error:
        read_image(path)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: cannot be read: No such file or directory$"):
        read_image(path)
