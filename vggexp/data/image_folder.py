"""Lists folders of images, and splits them. Needs no torch."""

import contextlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from vggexp.data.image_file import image_error
from vggexp.errors import DataError, VggexpError
from vggexp.formatting import shorten

# The suffixes of torchvision's ImageFolder.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
HIDDEN = "hidden"  # of names that begin with a dot
NOT_REGULAR = "not a regular file"  # a pipe, a socket or a device, with the suffix of an image
MAX_NAMES_CHARS = 60  # of the names of the classes without a test image


@dataclass(frozen=True)
class FolderIndex:
    """Image files of one part of a data set. They are decoded later, when they are needed."""

    paths: list[Path]
    labels: list[int]
    classes: tuple[str, ...]
    left_out: Counter[str]  # as in FolderListing

    def select(self, indices: list[int]) -> "FolderIndex":
        """Returns the chosen images, by their indices."""
        paths = [self.paths[index] for index in indices]
        return replace(self, paths=paths, labels=[self.labels[index] for index in indices])


# What was read in each block of cached_reads that is running. All use the outermost one.
_CACHES: list[dict[Hashable, Any]] = []
Data = TypeVar("Data")


@contextlib.contextmanager
def cached_reads() -> Iterator[None]:
    """Keeps what `read_once` reads until the end of the block: a check and its run share it.

    Listing 12,000 files takes half a second, also when their hash is cached.
    """
    _CACHES.append({})
    try:
        yield
    finally:
        _CACHES.pop()


def read_once(key: Hashable, read: Callable[[], Data]) -> Data:
    """Returns what `read` returns, in a block of `cached_reads` from its first call."""
    cache = _CACHES[0] if _CACHES else {}
    if key not in cache:
        cache[key] = read()
    return cache[key]


def index_folder(root: Path, test_fraction: float | None = None) -> DatasetSplits[FolderIndex]:
    """Lists a folder as `_index_folder`, in a block of `cached_reads` only once."""
    return read_once((root, test_fraction), lambda: _index_folder(root, test_fraction))


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
    train = index.select([number for number, test in enumerate(is_test) if not test])
    test = index.select([number for number, test in enumerate(is_test) if test])
    return train, replace(test, left_out=Counter())  # counted once, in the training part


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
