"""A folder of pictures: which files it holds, and how one of them is decoded."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vggexp.data.catalogue import folder_classes, subfolders
from vggexp.data.pictures import DECODERS, MOST_PIXELS, pictures
from vggexp.data.sources import Loaded
from vggexp.errors import DataError


@dataclass(frozen=True)
class FolderIndex:
    """Picture files that are decoded when they are wanted."""

    paths: list[Path]
    labels: list[int]
    classes: tuple[str, ...]


def index_folder(root: Path) -> Loaded[FolderIndex]:
    """root/train/CLASS/... and root/test/CLASS/... (or root/val), decoded later. Raises DataError.

    The fingerprint is over sorted relative paths and file sizes: to read all bytes of a large folder takes too long.
    """
    classes = folder_classes(root)
    held_out = next((root / name for name in ("test", "val") if (root / name).is_dir()), None)
    if held_out is None:
        raise DataError(f"{root}: holds neither test nor val (wanted: {root}/test/CLASS/*.jpg)")
    if different := sorted(set(subfolders(held_out)) ^ set(classes)):
        raise DataError(f"{held_out}: class {different[0]!r} is not in both this folder and {root / 'train'}")
    (train, train_hash), (test, test_hash) = (_index(part, classes) for part in (root / "train", held_out))
    return Loaded(train, test, {"train": train_hash, held_out.name: test_hash}, str(root))


def _index(folder: Path, classes: tuple[str, ...]) -> tuple[FolderIndex, str]:
    paths: list[Path] = []
    labels: list[int] = []
    digest, start = hashlib.sha256(), len(str(folder))
    try:
        for label, name in enumerate(classes):
            found = pictures(folder / name)
            paths += map(Path, found)
            labels += [label] * len(found)
            for path in found:
                digest.update(b"%s\0%d\n" % (os.fsencode(path[start:]), os.path.getsize(path)))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return FolderIndex(paths, labels, classes), digest.hexdigest()


def read_image(path: Path, channels: int = 3) -> Tensor:
    """uint8 [channels, H, W], 3 or 1, upright as its EXIF data says; of an animation the first frame.

    Raises DataError.
    """
    from PIL import Image, ImageOps  # torchvision's decoders are deprecated and cover fewer formats

    try:
        with Image.open(path, formats=DECODERS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DataError(f"{path}: {image.width}x{image.height} pixels, more than {MOST_PIXELS} in all")
            if image.mode == "F":
                raise DataError(f"{path}: pixels are fractions of unknown range (save it with 8 or 16 bits)")
            ImageOps.exif_transpose(image, in_place=True)
            if image.mode.startswith("I"):  # 16 bits, which PIL would cut at 255 instead of scaling
                rgb = image.convert("I").point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
            else:
                rgb = image.convert("RGB")
            pixels = rgb if channels == 3 else rgb.convert("L")  # which leaves a grey picture's pixels as they were
    except (DataError, MemoryError):
        raise
    except Exception as error:  # decoders raise what they like
        raise DataError(f"{path}: cannot be decoded: {' '.join(str(error).split())}") from error
    flat = torch.frombuffer(bytearray(pixels.tobytes()), dtype=torch.uint8)
    return flat.view(pixels.height, pixels.width, channels).permute(2, 0, 1)
