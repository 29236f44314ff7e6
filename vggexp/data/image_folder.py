"""Finds and reads image files. Finding them needs no torch and decodes nothing."""

import contextlib
import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from vggexp.data.catalog import (
    DEFAULT_TEST_FRACTION,
    DatasetSplits,
    folder_classes,
    folder_layout,
    subfolders,
    unreadable,
)
from vggexp.data.fingerprint import contents_sha256, list_files
from vggexp.data.folder_split import choose_test_images, count_test_images
from vggexp.errors import DataError, VggexpError
from vggexp.formatting import one_line, shorten
from vggexp.system.files import open_regular

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage
    from torch import Tensor

# The suffixes of torchvision's ImageFolder.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
HIDDEN = "hidden"  # of names that begin with a dot
NOT_REGULAR = "not a regular file"  # a pipe, a socket or a device, with the suffix of an image
# PIL has other decoders, which start programs.
DECODERS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
# Of one image: 192 MiB in RGB. A larger image is taken for a decompression bomb.
MAX_PIXELS = 1 << 26
# Longer side of an image, relative to its shorter side. A longer image would be as large as a
# bomb once its shorter side is resized.
MAX_ASPECT = 256

MAX_NAMES_CHARS = 60  # of the names of the classes without a test image

# Tags of TIFF files and of EXIF data, and values of these tags.
BITS_PER_SAMPLE = 258
PHOTOMETRIC = 262
WHITE_IS_ZERO = 0
ORIENTATION = 274
SAMPLE_FORMAT = 339
SIGNED = 2
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # of a file; + in a BigTIFF


@dataclass(frozen=True)
class FolderIndex:
    """Image files of one part of a data set. They are decoded later, when they are needed."""

    paths: list[Path]
    labels: list[int]
    classes: tuple[str, ...]
    left_out: Counter[str]  # as in FolderListing


# What was listed in each block of list_folders_once that is running, by what it was listed from.
_LISTED: list[dict[Hashable, Any]] = []
Listed = TypeVar("Listed")


@contextlib.contextmanager
def list_folders_once() -> Iterator[None]:
    """Keeps each listing until the end of the block, so that a check and its run share it.

    Listing 12,000 files takes half a second, also when their hash is cached.
    """
    _LISTED.append({})
    try:
        yield
    finally:
        _LISTED.pop()


def list_once(key: Hashable, list_data: Callable[[], Listed]) -> Listed:
    """Returns what `list_data` returns, in a block of `list_folders_once` from its first call."""
    listed = _LISTED[0] if _LISTED else {}
    if key not in listed:
        listed[key] = list_data()
    return listed[key]


def index_folder(root: Path, test_fraction: float | None = None) -> DatasetSplits[FolderIndex]:
    """Lists a folder as `_index_folder`, in a block of `list_folders_once` only once."""
    return list_once((root, test_fraction), lambda: _index_folder(root, test_fraction))


def _index_folder(root: Path, test_fraction: float | None) -> DatasetSplits[FolderIndex]:
    """Lists the images of root/train/CLASS and root/test/CLASS (or root/val/CLASS).

    Without a test folder, a share of each class is the test set: see `split_index`. The images are
    then those of root/train/CLASS or root/CLASS. The origin says so, and it says what was left out,
    such as hidden files and files that are no images.

    The fingerprint covers the sorted relative paths and the contents of the files; see
    `fingerprint.contents_sha256`.

    Args:
        test_fraction: share of the test set without a test folder; None: DEFAULT_TEST_FRACTION.

    Raises:
        DataError: a folder or a class is missing, or a file cannot be read.
    """
    if not root.parts:
        root = Path.cwd()  # the paths of files below "." do not begin with it
    classes = folder_classes(root)
    layout = folder_layout(root)
    if layout.test is not None:
        _check_same_classes(layout.train, layout.test, classes)
    train = _index_part(layout.train, classes)
    origin = str(root)
    if layout.test is None:
        fraction = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
        train, test = split_index(layout.train, train, fraction)
        origin += f"; no test folder: {fraction:g} of each class for the test"
        tested = {*test.labels}
        untested = [name for label, name in enumerate(test.classes) if label not in tested]
        if untested:  # classes of a single image
            origin += f"; without a test image: {shorten(', '.join(untested), MAX_NAMES_CHARS)}"
    else:
        test = _index_part(layout.test, classes)
    test_name = "test" if layout.test is None else layout.test.name
    hashes = {
        "train": hash_files(layout.train, train.paths),
        test_name: hash_files(layout.test or layout.train, test.paths),
    }
    left_out = [f"{count:,} {kind}" for kind, count in (train.left_out + test.left_out).items()]
    if layout.train != root:
        left_out += [name for name in subfolders(root) if name not in hashes]
    if left_out:
        origin += f"; left out: {', '.join(left_out)}"
    fingerprint = {name: part.contents for name, part in hashes.items()}
    earlier = {name: part.names_and_sizes for name, part in hashes.items()}
    return DatasetSplits(train, test, fingerprint, origin, earlier)


def count_images(root: Path, test_fraction: float | None = None) -> tuple[int, int]:
    """Returns the numbers of training and of test images, as `index_folder`. Opens no file.

    Raises:
        DataError: as in `index_folder`.
    """
    classes = folder_classes(root)
    layout = folder_layout(root)
    with _translate_os_errors():
        counts = [len(list_folder(layout.train / name).images) for name in classes]
        if layout.test is not None:
            test = sum(len(list_folder(layout.test / name).images) for name in classes)
            return sum(counts), test
    fraction = DEFAULT_TEST_FRACTION if test_fraction is None else test_fraction
    test = sum(count_test_images(count, fraction) for count in counts if count)
    return sum(counts) - test, test


def _check_same_classes(train: Path, test: Path, classes: tuple[str, ...]) -> None:
    differences = sorted(set(subfolders(test)) ^ set(classes))
    if differences:
        raise DataError(f"{test}: class {differences[0]!r} is not in both this folder and {train}")


def _index_part(folder: Path, classes: tuple[str, ...]) -> FolderIndex:
    """Returns the images of all classes."""
    images: list[str] = []
    labels: list[int] = []
    with _translate_os_errors():
        beside = sorted({*os.listdir(folder)} - {*classes})  # hidden folders, and files
        left_out = Counter(map(_kind, beside))
        for label, name in enumerate(classes):
            files, others = list_folder(folder / name)
            left_out += others
            images += files
            labels += [label] * len(files)
    names = tuple(map(_as_text, classes))
    return FolderIndex([Path(image) for image in images], labels, names, left_out)


def split_index(
    folder: Path, index: FolderIndex, fraction: float
) -> tuple[FolderIndex, FolderIndex]:
    """Splits each class into a training and a test part, as `choose_test_images`.

    Raises:
        DataError: every class has a single image.
    """
    is_test = choose_test_images(folder, index.paths, index.labels, fraction)
    if not any(is_test):
        raise DataError(f"{folder}: every class has a single image, so none is left for the test")
    train = _select(index, [not test for test in is_test], index.left_out)
    return train, _select(index, is_test, Counter())


def _select(index: FolderIndex, selected: Sequence[bool], left_out: Counter[str]) -> FolderIndex:
    paths = [*compress(index.paths, selected)]
    return FolderIndex(paths, [*compress(index.labels, selected)], index.classes, left_out)


class PartHashes(NamedTuple):
    """SHA-256s of one part of an image folder."""

    contents: str
    names_and_sizes: str


def hash_files(folder: Path, paths: Sequence[Path]) -> PartHashes:
    files = [str(path) for path in paths]
    with _translate_os_errors():
        listing = list_files(folder, files)
        return PartHashes(contents_sha256(folder, files, listing), listing.names_and_sizes)


@contextlib.contextmanager
def _translate_os_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise unreadable(error.filename, error) from error


def _as_text(name: str) -> str:
    r"""Returns the name of a folder, of which bytes that are not UTF-8 become text such as \xe9.

    Class names are written to files and shown by other programs.
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


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


class FolderListing(NamedTuple):
    """What a folder and its subfolders hold."""

    images: list[str]  # sorted paths
    left_out: Counter[str]  # how many other files and hidden folders, by kind as in `_kind`


def list_folder(folder: Path) -> FolderListing:
    """Finds all image files in the folder and below; links to folders are followed.

    Raises:
        DataError: there is no image file, or a link leads back to a folder around it.
        OSError: a folder cannot be read.
    """

    def raise_error(error: OSError) -> None:  # os.walk would go on without the folder
        raise error

    images = []
    left_out: Counter[str] = Counter()
    for parent, folders, files in os.walk(folder, onerror=raise_error, followlinks=True):
        left_out[HIDDEN] += sum(name.startswith(".") for name in folders)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in folders:
            _check_link(os.path.join(parent, name), folder)
        for name in files:
            kind = _kind(name)
            if kind not in IMAGE_SUFFIXES:
                left_out[kind] += 1
                continue
            path = os.path.join(parent, name)
            if stat.S_ISREG(os.stat(path).st_mode):
                images.append(path)
            else:
                left_out[NOT_REGULAR] += 1
    if not images:
        raise DataError(f"{folder}: holds no images ({' '.join(IMAGE_SUFFIXES)})")
    return FolderListing(sorted(images), left_out)


def _kind(name: str) -> str:
    """Returns the suffix of a file in lower case; HIDDEN if its name begins with a dot."""
    if name.startswith("."):  # programs create such files, some with the suffix of an image
        return HIDDEN
    return os.path.splitext(name)[1].lower() or "without suffix"


def _check_link(path: str, folder: Path) -> None:
    """Raises DataError if `path`, below `folder`, is a link to a folder that it is in."""
    if not os.path.islink(path):
        return
    target = os.path.join(os.path.realpath(path), "")
    parent = os.path.dirname(path)
    while len(parent) >= len(str(folder)):
        if os.path.join(os.path.realpath(parent), "").startswith(target):
            raise DataError(f"{path}: a link to a folder that it is in; remove it")
        parent = os.path.dirname(parent)


def expand_image_paths(paths: Iterable[Path]) -> list[Path]:
    """Returns the image files: the given files, and all files of the given folders.

    A file that is no image is among them, so that a command reports it beside the others.

    Raises:
        DataError: names every folder without images, or every file if none is an image.
        ResourceError: a permission or a resource is missing.
    """
    images: list[Path] = []
    problems: list[VggexpError] = []
    for path in paths:
        try:
            with _translate_os_errors():
                images += map(Path, list_folder(path).images) if path.is_dir() else [path]
        except VggexpError as error:
            problems.append(error)
    raise_together(problems)
    errors = [*map(image_error, images)]
    if all(errors):
        raise_together(filter(None, errors))
    return images


def raise_together(errors: Iterable[VggexpError]) -> None:
    """Raises one error with all texts, which has the class of the first. Does nothing without."""
    found = list(errors)
    if found:
        raise type(found[0])("; ".join(map(str, found)))


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
