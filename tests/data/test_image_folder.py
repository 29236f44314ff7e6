"""Folders of pictures: the index, and pictures of every format, whole and damaged."""

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

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


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
        PICTURE.save(tmp_path / file)
    (tmp_path / "train" / "b" / "notes.txt").write_bytes(b"")
    (tmp_path / "train" / ".cache").mkdir()
    return tmp_path


def test_index(folder: Path) -> None:
    loaded = index_folder(folder)
    assert loaded.train.classes == loaded.test.classes == folder_classes(folder) == ("a", "b")
    (folder / "train" / ".cache").rmdir()  # torchvision would take it for a class
    theirs = datasets.ImageFolder(str(folder / "train"))
    ours = zip(map(str, loaded.train.paths), loaded.train.labels, strict=True)
    assert list(ours) == theirs.samples
    (folder / "test").rename(folder / "val")
    renamed = index_folder(folder)
    assert renamed.fingerprint == {
        "train": loaded.fingerprint["train"],
        "val": loaded.fingerprint["test"],
    }
    (folder / "train" / "a" / "3.jpeg").write_bytes(b"longer or shorter")
    assert index_folder(folder).fingerprint["train"] != loaded.fingerprint["train"]


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda root: (root / "train").rename(root / "x"),
            "/train: cannot be read: No such file or directory",
        ),
        (lambda root: (root / "test").rename(root / "x"), "holds neither test nor val"),
        (lambda root: (root / "train" / "c").mkdir(), "test: class 'c' is not in both"),
        (
            lambda root: [(root / part / "c").mkdir() for part in ("train", "test")],
            "train/c: holds no pictures",
        ),
        (lambda root: (root / "test" / "b" / "5.webp").unlink(), "test/b: holds no pictures"),
        (
            lambda root: (root / "train" / "a" / "gone.jpg").symlink_to("nowhere"),
            "gone.jpg: cannot be read",
        ),
    ],
)
def test_unusable_folder(folder: Path, spoil: Callable[[Path], object], told: str) -> None:
    spoil(folder)
    with pytest.raises(DataError, match=told):
        index_folder(folder)


def test_no_classes(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="train: holds no class folders"):
        folder_classes(tmp_path)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA", "P", "1", "I;16"])
def test_read_image(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    if mode == "I;16":
        values = np.arange(54, dtype=np.uint16).reshape(6, 9) * 1200
        Image.fromarray(values).save(path)
        wanted = np.repeat((values // 256)[..., None], 3, axis=2)
    else:
        made = PICTURE.convert(mode)
        made.save(path)
        wanted = np.asarray(made.convert("RGB"))
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.shape == (3, 6, 9)
    assert image.permute(1, 2, 0).tolist() == wanted.tolist()


def test_upright_and_first_frame(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter to the left by the camera
    PICTURE.save(tmp_path / "turned.png", exif=exif)
    PICTURE.save(tmp_path / "moving.png", save_all=True, append_images=[PICTURE.rotate(180)])
    PICTURE.save(tmp_path / "still.png")
    still = read_image(tmp_path / "still.png")
    assert torch.equal(read_image(tmp_path / "turned.png"), still.rot90(-1, (1, 2)))
    assert torch.equal(read_image(tmp_path / "moving.png"), still)


def bad_pictures() -> Files:
    stream = io.BytesIO()
    PICTURE.resize((200, 200)).save(stream, "png")
    png = stream.getvalue()
    huge = png[:16] + (100_000).to_bytes(4, "big") * 2 + png[24:]
    large = png[:16] + (9_000).to_bytes(4, "big") * 2 + png[24:]
    return {
        "empty": b"",
        "cut": png[: len(png) // 2],
        "text": b"hello",
        "huge": _crc(huge),
        "large": _crc(large),
    }


def _crc(png: bytes) -> bytes:
    return png[:29] + zlib.crc32(png[12:29]).to_bytes(4, "big") + png[33:]


@pytest.mark.parametrize(("name", "raw"), bad_pictures().items(), ids=bad_pictures())
def test_unreadable_picture(tmp_path: Path, name: str, raw: bytes) -> None:
    path = tmp_path / f"{name}.png"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=f"^{path}: (cannot be decoded|9000x9000 pixels)") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)
    path.unlink()
    with pytest.raises(DataError, match=f"^{path}: cannot be decoded: .*No such file"):
        read_image(path)


# --------------------------------------------------------------------------------------- the sources
