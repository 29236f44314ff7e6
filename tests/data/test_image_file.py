"""Reads intact and damaged images of every format."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vggexp.data.image_file import read_image
from vggexp.data.image_folder import expand_image_paths
from vggexp.errors import DataError

Files = dict[str, bytes]

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8))


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
