"""Facts of torchvision's data sets for classification, by name. Needs no torch.

A set of arrays is read whole, into images of one size. A set of files lists image files, which are
decoded when they are needed, as those of an image folder.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Arguments = Mapping[str, Any]  # of the class, by name
Choices = Sequence[Any]  # the values that an argument may have


@dataclass(frozen=True)
class TorchvisionSet:
    """How a class of torchvision.datasets is called, and where it keeps what it has read."""

    train: Arguments  # make the part for training
    test: Arguments | None  # make the test part; None: some of the images in `train` are the test
    classes: tuple[str, ...] | str  # their names, the attribute that has them, or "": numbers
    images: str = ""  # the attribute with the images, or with the files; "": the items have them
    labels: str = ""  # the attribute with the labels; "": they stand beside the images
    arguments: Mapping[str, Choices] = field(default_factory=dict)  # that a configuration may set
    required: tuple[str, ...] = ()  # of these
    has_files: bool = True  # False: the images are generated
    downloads: bool = True  # whether torchvision can download it and has its checksum
    packages: tuple[str, ...] = ()  # that reading it needs, beside those of torchvision
    download_packages: tuple[str, ...] = ()  # that its download needs
    # names in data.root that torchvision would make if they are missing
    needs: tuple[str, ...] = ()
    sorts_files: bool = False  # torchvision has them in the order in which the system lists them
    sorts_classes: bool = False  # the same for the classes, of which it makes the labels


@dataclass(frozen=True)
class ArraySet(TorchvisionSet):
    channels: int = 1
    size: int = 28  # height and width in pixels


DIGITS = tuple("0123456789")
TRAIN: Arguments = {"train": True}
TEST: Arguments = {"train": False}
TRAIN_SPLIT: Arguments = {"split": "train"}
TEST_SPLIT: Arguments = {"split": "test"}
VAL_SPLIT: Arguments = {"split": "val"}  # the labels of the test split are not published
IMAGE_SHAPE = ("[1,SIDE,SIDE]", "[3,SIDE,SIDE]")  # channels, height and width in pixels
FACES = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")

ARRAY_SETS = {
    "EMNIST": ArraySet(
        TRAIN,
        TEST,
        classes="classes",
        images="data",
        labels="targets",
        arguments={"split": ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")},
        required=("split",),
    ),
    "FER2013": ArraySet(TRAIN_SPLIT, TEST_SPLIT, classes=FACES, downloads=False, size=48),
    "FakeData": ArraySet(
        {},
        None,
        classes="num_classes",
        arguments={
            "size": range(10, 10**6),
            "image_size": IMAGE_SHAPE,
            "num_classes": range(2, 100_001),
            "random_offset": range(2**31),
        },
        has_files=False,
        downloads=False,
        channels=3,
        size=224,
    ),
    "KMNIST": ArraySet(TRAIN, TEST, classes="classes", images="data", labels="targets"),
    "PCAM": ArraySet(
        TRAIN_SPLIT,
        TEST_SPLIT,
        classes=("normal", "tumor"),
        packages=("h5py",),
        download_packages=("gdown",),
        channels=3,
        size=96,
    ),
    "QMNIST": ArraySet(
        {"what": "train"},
        {"what": "test"},
        classes="classes",
        images="data",
        labels="targets",
    ),
    "SEMEION": ArraySet({}, None, classes=DIGITS, images="data", labels="labels", size=16),
    "STL10": ArraySet(
        TRAIN_SPLIT,
        TEST_SPLIT,
        classes="classes",
        images="data",
        labels="labels",
        arguments={"folds": range(10)},
        channels=3,
        size=96,
    ),
    "SVHN": ArraySet(
        TRAIN_SPLIT,
        TEST_SPLIT,
        classes=DIGITS,
        images="data",
        labels="labels",
        packages=("scipy",),
        channels=3,
        size=32,
    ),
    "USPS": ArraySet(TRAIN, TEST, classes=DIGITS, images="data", labels="targets", size=16),
}

FILE_SETS = {
    "CLEVRClassification": TorchvisionSet(TRAIN_SPLIT, VAL_SPLIT, classes=""),
    "Caltech101": TorchvisionSet(
        {}, None, classes="categories", packages=("scipy",), needs=("caltech101",)
    ),
    "Caltech256": TorchvisionSet({}, None, classes="categories", needs=("caltech256",)),
    "Country211": TorchvisionSet(TRAIN_SPLIT, TEST_SPLIT, classes="classes"),
    "DTD": TorchvisionSet(
        TRAIN_SPLIT, TEST_SPLIT, classes="classes", arguments={"partition": range(1, 11)}
    ),
    "EuroSAT": TorchvisionSet({}, None, classes="classes"),
    "FGVCAircraft": TorchvisionSet(
        {"split": "trainval"},
        TEST_SPLIT,
        classes="classes",
        arguments={"annotation_level": ("variant", "family", "manufacturer")},
        downloads=False,  # torchvision has no checksum of the archive
    ),
    "Flowers102": TorchvisionSet(TRAIN_SPLIT, TEST_SPLIT, classes="classes", packages=("scipy",)),
    "Food101": TorchvisionSet(TRAIN_SPLIT, TEST_SPLIT, classes="classes"),
    "GTSRB": TorchvisionSet(TRAIN_SPLIT, TEST_SPLIT, classes="", images="_samples"),
    "INaturalist": TorchvisionSet(
        {"version": "2021_train"},
        {"version": "2021_valid"},
        classes="all_categories",
        sorts_files=True,
    ),
    "ImageNet": TorchvisionSet(
        TRAIN_SPLIT,
        VAL_SPLIT,
        classes="classes",
        downloads=False,
        packages=("scipy",),
        needs=("meta.bin", "train", "val"),
    ),
    "Imagenette": TorchvisionSet(
        TRAIN_SPLIT,
        VAL_SPLIT,
        classes="classes",
        arguments={"size": ("full", "320px", "160px")},
    ),
    "LFWPeople": TorchvisionSet(
        {"split": "10fold"},
        None,
        classes="class_to_idx",
        arguments={"image_set": ("original", "funneled", "deepfunneled")},
        downloads=False,
    ),
    "Omniglot": TorchvisionSet(
        {}, None, classes="_characters", sorts_files=True, sorts_classes=True
    ),
    "OxfordIIITPet": TorchvisionSet(
        {"split": "trainval"}, TEST_SPLIT, classes="classes", images="_images", labels="_labels"
    ),
    "Places365": TorchvisionSet(
        {"split": "train-standard"},
        VAL_SPLIT,
        classes="classes",
        arguments={"small": (False, True)},
    ),
    "RenderedSST2": TorchvisionSet(TRAIN_SPLIT, TEST_SPLIT, classes="classes"),
    "SUN397": TorchvisionSet({}, None, classes="classes", sorts_files=True),
    "StanfordCars": TorchvisionSet(
        TRAIN_SPLIT, TEST_SPLIT, classes="classes", downloads=False, packages=("scipy",)
    ),
}

TORCHVISION_SETS: Mapping[str, TorchvisionSet] = {**ARRAY_SETS, **FILE_SETS}

_NEED = "vggexp needs an image with one class"
_BOXES = f"its labels are boxes around objects; {_NEED}"
_CAPTIONS = f"its labels are sentences; {_NEED}"
_FLOW = f"its labels are the motion of each pixel; {_NEED}"
_MASKS = f"its labels are a class of each pixel; {_NEED}"
_STEREO = f"its labels are the distance of each pixel; {_NEED}"
_VIDEO = f"it holds videos; {_NEED}"

# The other classes of torchvision.datasets, and why they are no choice of data.name.
UNSUPPORTED_SETS = {
    "CIFAR10": "write data=cifar10",
    "CIFAR100": "write data=cifar100",
    "CREStereo": _STEREO,
    "CarlaStereo": _STEREO,
    "CelebA": f"an image has forty attributes and no single class; {_NEED}",
    "Cityscapes": _MASKS,
    "CocoCaptions": _CAPTIONS,
    "CocoDetection": _BOXES,
    "DatasetFolder": "write data=image_folder data.root=FOLDER",
    "ETH3DStereo": _STEREO,
    "FallingThingsStereo": _STEREO,
    "FashionMNIST": "write data=fashion_mnist",
    "Flickr30k": _CAPTIONS,
    "Flickr8k": _CAPTIONS,
    "FlyingChairs": _FLOW,
    "FlyingThings3D": _FLOW,
    "HD1K": _FLOW,
    "HMDB51": _VIDEO,
    "ImageFolder": "write data=image_folder data.root=FOLDER",
    "InStereo2k": _STEREO,
    "Kinetics": _VIDEO,
    "Kitti": _BOXES,
    "Kitti2012Stereo": _STEREO,
    "Kitti2015Stereo": _STEREO,
    "KittiFlow": _FLOW,
    "LFWPairs": f"its labels say whether two images show one person; {_NEED}",
    "LSUN": "torchvision keeps its index as a pickle, which could run code",
    "LSUNClass": f"its images have no label; {_NEED}",
    "MNIST": "write data=mnist",
    "Middlebury2014Stereo": _STEREO,
    "MovingMNIST": _VIDEO,
    "PhotoTour": f"its labels say whether two images show one point; {_NEED}",
    "SBDataset": _MASKS,
    "SBU": _CAPTIONS,
    "SceneFlowStereo": _STEREO,
    "Sintel": _FLOW,
    "SintelStereo": _STEREO,
    "UCF101": _VIDEO,
    "VOCDetection": _BOXES,
    "VOCSegmentation": _MASKS,
    "VisionDataset": "the base class, not a data set",
    "WIDERFace": _BOXES,
}


def stored_shape(name: str, arguments: Arguments) -> tuple[int, int]:
    """Returns channels, and height and width in pixels, of the images of a set of arrays."""
    info = ARRAY_SETS[name]
    channels, size, _ = arguments.get("image_size", (info.channels, info.size, info.size))
    return channels, size
