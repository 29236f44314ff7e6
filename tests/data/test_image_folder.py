"""Indexes folders of images, and reads intact and damaged images of every format."""

import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from vggexp.data.catalog import folder_classes
from vggexp.data.image_folder import index_folder, read_image
from vggexp.errors import DataError

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


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "train").rename(root / "x"),
            "/train: cannot be read: No such file or directory",
        ),
        (lambda root: (root / "test").rename(root / "x"), "holds neither test nor val"),
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


def set_checksum(png: bytes) -> bytes:
    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4, "big") + png[33:]


@pytest.mark.parametrize(("name", "raw"), damaged_images().items(), ids=damaged_images())
def test_an_unreadable_image(tmp_path: Path, name: str, raw: bytes) -> None:
    path = tmp_path / f"{name}.png"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"^{path}: (cannot be decoded|9000x9000 pixels)") as error:
        read_image(path)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: cannot be decoded: .*No such file"):
        read_image(path)
