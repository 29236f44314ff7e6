"""Facts of each data set, known before its files are read. Needs neither torch nor numpy."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from vggexp.errors import DataError, VggexpError
from vggexp.system.files import missing_resource

TEST_FOLDERS = ("test", "val")  # of an image folder; the first that exists is the test set
# Folders of these names, in any case, are parts of a data set and no classes.
PART_NAMES = ("train", "training", "test", "testing", "val", "valid", "validation")
DEFAULT_TEST_FRACTION = 0.2  # of each class, for the test of a folder that has no test folder


class Checksum(NamedTuple):
    """Hash of a file."""

    algorithm: str  # a name of hashlib
    hex: str
    uncompressed: bool = False  # hash of the content of a .gz file, however it was compressed


@dataclass(frozen=True)
class DatasetInfo:
    """A data set of square images, and the origin of its files."""

    channels: int
    size: int  # height and width in pixels
    classes: tuple[str, ...]
    train_images: int
    test_images: int
    folder: str = ""  # the folder below torchvision's root that holds the files
    train_files: tuple[str, ...] = ()  # IDX: images, labels; pickled batches hold both
    test_files: tuple[str, ...] = ()
    checksums: dict[str, Checksum] = field(default_factory=dict)  # of all files and the archive
    mirrors: tuple[str, ...] = ()
    archive: str = ""  # the only file of a mirror; without an archive, each file as .gz
    system: str = ""  # the folder into which a Debian package puts the files
    package: str = ""


FASHION = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR100 = tuple(
    """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm""".split()
)
DIGITS = tuple("0123456789")

IDX_TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
IDX_TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CIFAR10_TRAIN = tuple(f"data_batch_{index}" for index in range(1, 6))


def _sha256(*hexes: str) -> dict[str, Checksum]:
    """Returns checksums of the four IDX files, uncompressed."""
    pairs = zip(IDX_TRAIN + IDX_TEST, hexes, strict=True)
    return {name: Checksum("sha256", value, uncompressed=True) for name, value in pairs}


def _md5(**hexes: str) -> dict[str, Checksum]:
    """Returns the only published checksums of CIFAR's files, which torchvision uses too."""
    return {name: Checksum("md5", value) for name, value in hexes.items()}


DATASETS = {
    "fashion_mnist": DatasetInfo(
        channels=1,
        size=28,
        classes=FASHION,
        train_images=60_000,
        test_images=10_000,
        folder="FashionMNIST/raw",
        train_files=IDX_TRAIN,
        test_files=IDX_TEST,
        checksums=_sha256(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        mirrors=(
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ),
        system="/usr/share/datasets/fashion-mnist",
        package="dataset-fashion-mnist",
    ),
    "mnist": DatasetInfo(
        channels=1,
        size=28,
        classes=DIGITS,
        train_images=60_000,
        test_images=10_000,
        folder="MNIST/raw",
        train_files=IDX_TRAIN,
        test_files=IDX_TEST,
        checksums=_sha256(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    "cifar10": DatasetInfo(
        channels=3,
        size=32,
        classes=CIFAR10,
        train_images=50_000,
        test_images=10_000,
        folder="cifar-10-batches-py",
        train_files=CIFAR10_TRAIN,
        test_files=("test_batch",),
        checksums=_md5(
            **{"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
            data_batch_1="c99cafc152244af753f735de768cd75f",
            data_batch_2="d4bba439e000b95fd0a9bffe97cbabec",
            data_batch_3="54ebc095f3ab1f0389bbae665268c751",
            data_batch_4="634d18415352ddfa80567beed471001a",
            data_batch_5="482c414d41f54cd18b22e5b47cb7c3cb",
            test_batch="40351d587109b95175f43aff81a1287e",
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        archive="cifar-10-python.tar.gz",
    ),
    "cifar100": DatasetInfo(
        channels=3,
        size=32,
        classes=CIFAR100,
        train_images=50_000,
        test_images=10_000,
        folder="cifar-100-python",
        train_files=("train",),
        test_files=("test",),
        checksums=_md5(
            **{"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
            train="16019d7e3df5f24257cddd939b257f8d",
            test="f0ef6b0ae62326f3e7ffdfab6717acfc",
        ),
        mirrors=("https://www.cs.toronto.edu/~kriz/",),
        archive="cifar-100-python.tar.gz",
    ),
    # scikit-learn has one set of 1,797 images and no test set. The test set here is a fixed,
    # stratified fifth of them.
    "digits": DatasetInfo(
        channels=1,
        size=8,
        classes=DIGITS,
        train_images=1_437,
        test_images=360,
    ),
}


class FolderLayout(NamedTuple):
    """Where an image folder has its class folders."""

    train: Path
    test: Path | None  # None: some of the images in `train` are the test set


def folder_layout(root: Path) -> FolderLayout:
    """Returns root/train with root/test or root/val, or the folder that is to be split.

    Raises:
        DataError: root cannot be read, or a folder in it has the name of another part.
    """
    parts = [name for name in subfolders(root) if name.lower() in PART_NAMES]
    if not parts:
        return FolderLayout(root, None)
    for name in TEST_FOLDERS:
        if "train" in parts and name in parts:
            return FolderLayout(root / "train", root / name)
    if parts == ["train"]:
        return FolderLayout(root / "train", None)
    held = ", ".join(parts)
    raise DataError(
        f"{root}: holds {held}; needs train and test (or val), train alone, or class folders alone"
    )


def folder_classes(root: Path) -> tuple[str, ...]:
    """Returns the classes of an image folder: the sorted names of the folders for training.

    Raises:
        DataError: the folder cannot be read, or holds fewer than two classes.
    """
    train = folder_layout(root).train
    names = subfolders(train)
    if not names:
        raise DataError(f"{train}: holds no class folders (expected: {train}/CLASS/*.jpg)")
    if len(names) == 1:
        raise DataError(
            f"{train}: holds a single class folder, {names[0]}; "
            f"at least 2 (expected: {train}/CLASS/*.jpg)"
        )
    return names


def subfolders(folder: Path) -> tuple[str, ...]:
    """Returns sorted names, without those that start with a dot (programs create such folders).

    Raises:
        DataError: the folder cannot be listed.
        ResourceError: a permission or a resource is missing.
    """
    try:
        with os.scandir(folder) as found:
            entries = [entry for entry in found if entry.is_dir()]
    except OSError as error:
        raise unreadable(folder, error, "data.root must hold CLASS/*.jpg") from error
    return tuple(sorted(entry.name for entry in entries if not entry.name.startswith(".")))


def unreadable(path: object, error: OSError, hint: str = "") -> VggexpError:
    """Returns the error of data that the system does not open or read."""
    advice = f" ({hint})" if hint else ""
    reason = f"{path}: cannot be read: {error.strerror or error}{advice}"
    return missing_resource(path, error) or DataError(reason)


Part = TypeVar("Part")  # TensorDataset, or FolderIndex of vggexp.data.image_folder


@dataclass(frozen=True, eq=False)
class DatasetSplits(Generic[Part]):
    """Training and test part of a data set."""

    train: Part
    test: Part
    # File name -> SHA-256 of the uncompressed bytes. See image_folder.index_folder for a folder.
    fingerprint: dict[str, str]
    origin: str  # for people: the folder that was read, or what generated the data
    # The fingerprint that version 0.1.0 recorded of a folder: of the names and sizes of the files.
    earlier_fingerprint: dict[str, str] = field(default_factory=dict)
