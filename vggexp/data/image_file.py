"""Reads one image file: every format and mode becomes uint8, and a damaged file one error."""

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp.data.catalog import unreadable
from vggexp.errors import DataError, VggexpError
from vggexp.formatting import one_line
from vggexp.system.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from torch import Tensor

# PIL has other decoders, which start programs.
DECODERS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# Of one image: 192 MiB in RGB. A larger image is taken for a decompression bomb.
MAX_PIXELS = 1 << 26
# Longer side of an image, relative to its shorter side. A longer image would be as large as a
# bomb once its shorter side is resized.
MAX_ASPECT = 256

# Tags of TIFF files and of EXIF data, and values of these tags.
BITS_PER_SAMPLE = 258
PHOTOMETRIC = 262
WHITE_IS_ZERO = 0
ORIENTATION = 274
SAMPLE_FORMAT = 339
SIGNED = 2
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of a file; + in a BigTIFF


def read_image(path: Path, channels: int = 3) -> "Tensor":
    """Reads an image, upright according to its EXIF data; of an animation the first frame.

    Args:
        channels: 3, or 1 for gray.

    Returns:
        uint8 [channels, H, W].

    Raises:
        DataError: the file is missing, cannot be decoded, or is too large.
        ResourceError: a permission or a resource is missing.
    """
    import torch

    try:
        with _open_image(path) as image:
            pixels = _to_rgb(image, path)
            if channels == 1:  # leaves the pixels of a gray image as they were
                pixels = pixels.convert("L")
    except (VggexpError, MemoryError):
        raise
    except Exception as error:  # decoders raise any exception
        raise _image_error(path, error) from error
    values = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    values = values.view(pixels.height, pixels.width, channels)
    return values.permute(2, 0, 1)


@contextlib.contextmanager
def _open_image(path: Path) -> "Iterator[PILImage]":
    """Opens an image file without PIL's warnings, which are about metadata and sizes."""
    from PIL import Image  # torchvision's decoders are deprecated and cover fewer formats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with (
            open(path, "rb", opener=open_regular) as file,
            Image.open(file, formats=DECODERS) as image,
        ):
            yield image


def _to_rgb(image: "PILImage", path: Path) -> "PILImage":
    """Turns the image upright and converts it to RGB; raises DataError if that cannot be done."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{path}: {image.width}x{image.height} pixels, more than {MAX_PIXELS} in all"
        )
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise DataError(
            f"{path}: {image.width}x{image.height} pixels, "
            f"one side is more than {MAX_ASPECT} times the other"
        )
    tags = getattr(image, "tag_v2", {})  # of a TIFF file
    has_32_bits = image.mode == "I" and bool(tags)
    if image.mode == "F" or has_32_bits or SIGNED in tags.get(SAMPLE_FORMAT, ()):
        raise DataError(
            f"{path}: pixels are fractions, signed or of 32 bits, of unknown range "
            "(save it with 8 or 16 bits, unsigned)"
        )
    upright = _upright(image)
    if not image.mode.startswith("I"):
        return upright.convert("RGB")
    # More than 8 bits: PIL would clip the values at 255 instead of scaling them.
    (bits,) = tags.get(BITS_PER_SAMPLE, (16,))
    scale = 2.0 ** (8 - bits)
    offset = 0.0
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:  # PIL inverts up to 8 bits only
        offset = (2**bits - 1) * scale
        scale = -scale
    scaled = upright.convert("I").point(lambda value: value * scale + offset)
    return scaled.convert("L").convert("RGB")


def _upright(image: "PILImage") -> "PILImage":
    """Turns an image by the orientation in its EXIF data, and reads nothing else of that data.

    Damaged EXIF data is ignored, because the image itself may be intact.
    """
    from PIL import Image

    image.load()  # the EXIF data may follow the pixels
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # PIL raises any exception
        return image
    turns = Image.Transpose
    turn = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if turn is None else image.transpose(turn)


def image_error(path: Path) -> VggexpError | None:
    """Returns why a file cannot be an image, judged by its first bytes; None if it may be one."""
    try:
        with _open_image(path):
            return None
    except Exception as error:  # decoders raise any exception
        return _image_error(path, error)


def _image_error(path: Path, error: Exception) -> VggexpError:
    """Returns the error of a file that cannot be read: the system says why, or else the decoder."""
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return DataError(f"{path}: {_unidentified(path)}")
    if isinstance(error, OSError) and error.strerror:
        return unreadable(path, error)
    return DataError(f"{path}: cannot be decoded: {one_line(error)}")


def _unidentified(path: Path) -> str:
    """Returns what a file is that PIL does not identify, such as a TIFF of 64-bit floats."""
    with contextlib.suppress(OSError), open(path, "rb", opener=open_regular) as file:
        if file.read(len(TIFF_STARTS[0])) in TIFF_STARTS:
            return (
                "a TIFF that is damaged or has an unsupported pixel format "
                "(save it with 8 or 16 bits, unsigned)"
            )
    return "not an image"
