"""Which files are pictures, told without torch and without decoding them."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vggexp.data.catalog import DatasetSplits, folder_classes, subfolders
from vggexp.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".ppm",
    ".bmp",
    ".pgm",
    ".tif",
    ".tiff",
    ".webp",
)  # as torchvision's ImageFolder
DECODERS = (
    "JPEG",
    "PNG",
    "PPM",
    "BMP",
    "TIFF",
    "WEBP",
    "GIF",
)  # PIL has others that start programs
MAX_PIXELS = 1 << 26  # of a picture: 192 MiB in RGB; more is taken for a decompression bomb


@dataclass(frozen=True)
class FolderIndex:
    """Picture files that are decoded when they are wanted."""

    paths: list[Path]
    labels: list[int]
    classes: tuple[str, ...]


def index_folder(root: Path) -> DatasetSplits[FolderIndex]:
    """root/train/CLASS/... and root/test/CLASS/... (or root/val), decoded later. Raises DataError.

    The fingerprint is over sorted relative paths and file sizes: to read all bytes of a large folder takes too long.
    """
    classes = folder_classes(root)
    held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if held_out is None:
        raise DataError(f"{root}: holds neither test nor val (wanted: {root}/test/CLASS/*.jpg)")
    if different := sorted(set(subfolders(held_out)) ^ set(classes)):
        raise DataError(
            f"{held_out}: class {different[0]!r} is not in both this folder and {root / 'train'}"
        )
    (train, train_hash), (test, test_hash) = (
        _index_part(part, classes) for part in (root / "train", held_out)
    )
    return DatasetSplits(train, test, {"train": train_hash, held_out.name: test_hash}, str(root))


def _index_part(folder: Path, classes: tuple[str, ...]) -> tuple[FolderIndex, str]:
    paths: list[Path] = []
    labels: list[int] = []
    digest = hashlib.sha256()
    start = len(str(folder))
    try:
        for label, name in enumerate(classes):
            found = find_images(folder / name)
            paths += map(Path, found)
            labels += [label] * len(found)
            for path in found:
                digest.update(b"%s\0%d\n" % (os.fsencode(path[start:]), os.path.getsize(path)))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return FolderIndex(paths, labels, classes), digest.hexdigest()


def read_image(path: Path, channels: int = 3) -> "Tensor":
    """uint8 [channels, H, W], 3 or 1, upright as its EXIF data says; of an animation the first frame.

    Raises DataError.
    """
    import torch
    from PIL import Image, ImageOps  # torchvision's decoders are deprecated and cover fewer formats

    try:
        with Image.open(path, formats=DECODERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(
                    f"{path}: {image.width}x{image.height} pixels, more than {MAX_PIXELS} in all"
                )
            if image.mode == "F":
                raise DataError(
                    f"{path}: pixels are fractions of unknown range (save it with 8 or 16 bits)"
                )
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits, which PIL would cut at 255 instead of scaling
                rgb = (
                    image.convert("I")
                    .point(lambda value: value * (1 / 256))
                    .convert("L")
                    .convert("RGB")
                )
            else:
                rgb = image.convert("RGB")
            pixels = (
                rgb if channels == 3 else rgb.convert("L")
            )  # which leaves a grey picture's pixels as they were
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like
        raise DataError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from error
    flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return flat.view(pixels.height, pixels.width, channels).permute(2, 0, 1)


def find_images(folder: Path) -> list[str]:
    """Sorted paths of all picture files in the folder and below. Raises DataError where there are none, OSError."""

    def unreadable(error: OSError) -> None:  # os.walk would go on without it
        raise error

    walk = os.walk(folder, onerror=unreadable)
    found = sorted(
        os.path.join(at, file)
        for at, _, files in walk
        for file in files
        if file.lower().endswith(IMAGE_SUFFIXES)
    )
    if not found:
        raise DataError(f"{folder}: holds no pictures ({' '.join(IMAGE_SUFFIXES)})")
    return found


def expand_image_paths(paths: Iterable[Path]) -> list[Path]:
    """The picture files, and those of the folders among them. Raises DataError with everything that is none."""
    found = []
    wrong = []
    for path in paths:
        try:
            inside = [Path(file) for file in find_images(path)] if path.is_dir() else [path]
        except (DataError, OSError) as error:
            wrong.append(str(error))
            continue
        found += inside
        wrong += [problem for file in inside if (problem := image_error(file))]
    if wrong:
        raise DataError("; ".join(wrong))
    return found


def image_error(path: Path) -> str:
    """Why a file cannot be a picture, by its first bytes; nothing for one that may be."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=DECODERS):
            return ""
    except UnidentifiedImageError:
        return f"{path}: not a picture"
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror or error}"
    except Exception as error:  # decoders raise what they like
        return f"{path}: cannot be decoded: {' '.join(str(error).split())}"
