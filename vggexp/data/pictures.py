"""Which files are pictures, told without torch and without decoding them."""

import os
from collections.abc import Iterable
from pathlib import Path

from vggexp.errors import DataError

PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as torchvision's ImageFolder
DECODERS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")  # PIL has others that start programs
MOST_PIXELS = 1 << 26  # of a picture: 192 MiB in RGB; more is taken for a decompression bomb


def pictures(folder: Path) -> list[str]:
    """Sorted paths of all picture files in the folder and below. Raises DataError where there are none, OSError."""

    def unreadable(error: OSError) -> None:  # os.walk would go on without it
        raise error

    walk = os.walk(folder, onerror=unreadable)
    found = sorted(os.path.join(at, file) for at, _, files in walk for file in files if file.lower().endswith(PICTURES))
    if not found:
        raise DataError(f"{folder}: holds no pictures ({' '.join(PICTURES)})")
    return found


def named(paths: Iterable[Path]) -> list[Path]:
    """The picture files, and those of the folders among them. Raises DataError with everything that is none."""
    found, wrong = [], []
    for path in paths:
        try:
            inside = [Path(file) for file in pictures(path)] if path.is_dir() else [path]
        except (DataError, OSError) as error:
            wrong.append(str(error))
            continue
        found += inside
        wrong += [problem for file in inside if (problem := unreadable(file))]
    if wrong:
        raise DataError("; ".join(wrong))
    return found


def unreadable(path: Path) -> str:
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
