"""Computes what follows from a configuration: input, layers, memory, disk. Needs no torch."""

from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import NamedTuple

from vggexp.config.schema import (
    Config,
    Data,
    Device,
    ImageFiles,
    ImageFolder,
    Synthetic,
    Torchvision,
    TorchvisionArrays,
    Vgg,
)
from vggexp.data.catalog import DATASETS, folder_classes
from vggexp.data.image_views import ImageViews
from vggexp.data.torchvision_sets import stored_shape
from vggexp.errors import ConfigError
from vggexp.models import costs, shapes
from vggexp.models.costs import KEEP_NEWEST
from vggexp.system.cpu import supports_bf16
from vggexp.system.files import folder_problem

DEFAULT_FILE_SIZE = 224  # pixels, of image files without data.resize
INPUT_KEYS = (  # all keys that input_spec reads
    "data.name",
    "data.resize",
    "data.root",
    "data.limit",
    "data.test_limit",
    "data.val_fraction",
    "data.classes",
    "data.train_images",
    "data.test_images",
    "data.images",
    "data.channels",
    "data.size",
)


class InputSpec(NamedTuple):
    """Shape of the network's input, [channels, size, size], and the numbers of images.

    The numbers of images of an image folder are None: nothing has counted its files.
    """

    channels: int
    size: int
    classes: int
    train_images: int | None
    val_images: int | None
    test_images: int | None


def input_spec(config: Config) -> InputSpec:
    """Returns the input of the network.

    Raises:
        ConfigError: an image folder's classes are neither configured nor can be counted; or a data
            set of torchvision has not been counted by `vggexp.runs.data_source.count_data`.
        DataError: the image folder holds no classes.
    """
    data = config.data
    channels, size = _image_shape(data)
    if isinstance(data, ImageFolder):
        classes = data.classes or _count_folder_classes(data)
        return InputSpec(channels, data.resize or size, classes, None, None, None)
    classes, train, test = _known_counts(data)
    test = min(test, data.test_limit or test)
    spec = InputSpec(channels, data.resize or size, classes, None, None, test)
    return with_train_images(spec, config, train)


def _known_counts(data: Data) -> tuple[int, int, int]:
    """Returns the numbers of classes, images for training and test images."""
    if isinstance(data, Synthetic):
        return data.classes, data.images, data.images // 5
    if not isinstance(data, Torchvision):
        info = DATASETS[data.name]
        return len(info.classes), info.train_images, info.test_images
    if not is_counted(data):
        raise ConfigError(f"data.name={data.name}: its images have not been counted")
    return data.classes, data.train_images, data.test_images  # type: ignore[return-value]


def _image_shape(data: Data) -> tuple[int, int]:
    """Returns channels, and height and width in pixels, of the images before data.resize.

    Image files have any size, and are RGB for the network. Their size is then that of the network.
    """
    if isinstance(data, ImageFiles):
        return 3, DEFAULT_FILE_SIZE
    if isinstance(data, TorchvisionArrays):
        return stored_shape(data.name, data.arguments)
    info = data if isinstance(data, Synthetic) else DATASETS[data.name]
    return info.channels, info.size


def stored_size(data: Data) -> int:
    """Returns the height and width of the images before data.resize; see `_image_shape`."""
    _, size = _image_shape(data)
    return size


def is_counted(data: Torchvision) -> bool:
    """Returns whether classes and images are known; see `vggexp.runs.data_source.count_data`."""
    return None not in (data.classes, data.train_images, data.test_images)


def decodes_each_epoch(data: Data) -> bool:
    """Returns whether image files are decoded in every epoch."""
    return isinstance(data, ImageFiles) and data.cache in ("none", "auto")


def with_train_images(spec: InputSpec, config: Config, images: int) -> InputSpec:
    """Returns the input with the images of the training part divided as `divide_images` does."""
    train, val = divide_images(images, config)
    return spec._replace(train_images=train, val_images=val)


def divide_images(images: int, config: Config) -> tuple[int, int]:
    """Returns how many images of the training part are for training, and for validation."""
    images = min(images, config.data.limit or images)
    val = round(images * config.data.val_fraction)
    return images - val, val


def _count_folder_classes(data: ImageFolder) -> int:
    if data.root is None:
        folders = "give the folder that holds the images, or data.classes=N to plan"
        raise ConfigError(f"data.root=null: {folders}")
    if problem := folder_problem(data.root):
        raise ConfigError(f"data.root={data.root}: {problem}")
    return len(folder_classes(Path(data.root)))


def layers(config: Config) -> list[shapes.Layer]:
    """Returns the layers of the network. Raises ValueError if the image is too small."""
    spec = input_spec(config)
    arch = config.arch
    if isinstance(arch, Vgg):
        return shapes.vgg_layers(
            arch.blocks,
            arch.norm,
            arch.hidden,
            arch.width,
            in_channels=spec.channels,
            size=spec.size,
            classes=spec.classes,
        )
    functions = {"lenet": shapes.lenet_layers, "alexnet": shapes.alexnet_layers}
    return functions[arch.name](
        in_channels=spec.channels,
        size=spec.size,
        classes=spec.classes,
    )


def command_epochs(config: Config) -> int:
    """Returns the epoch at which the command of a run ends: `run.until`, or the last one."""
    return config.run.until or config.train.epochs


def ends_with_test(config: Config) -> bool:
    """Returns whether the command of a run tests it; False if `run.until` pauses the run."""
    return command_epochs(config) == config.train.epochs


def flip_only_from(config: Config) -> int | None:
    """Returns the epoch, counted from 0, from which training images are only flipped, or None."""
    fraction = config.augment.flip_only_fraction or 0
    epochs = config.train.epochs
    last_epochs = round(fraction * epochs)
    return epochs - last_epochs if last_epochs else None


def tested_views(config: Config) -> ImageViews:
    """Returns the copies of each image by which the run's own test predicts it."""
    return ImageViews(bool(config.train.test_flip), config.train.test_shift or 0)


def disk_bytes(config: Config) -> dict[str, int]:
    """Returns the most bytes of a `checkpoint`, of the `weights` alone, and of a `run`.

    The run's figure is that of all its checkpoints at any time, with train.keep=all without those
    inside an epoch, whose number depends on the speed. What else a run writes, such as predictions
    and images for TensorBoard, comes in addition.
    """
    train = config.train
    sizes = costs.disk_bytes(
        layers(config),
        optimizer_states=costs.optimizer_states(config.optimizer.name, config.optimizer.arguments),
        ema=train.ema is not None,
        classes=input_spec(config).classes,
        epochs=train.epochs,
    )
    if train.keep == "all":
        checkpoints = train.epochs
    else:
        checkpoints = KEEP_NEWEST
        if config.data.val_fraction:
            checkpoints += 1  # the best one
    checkpoints += 1  # the one that is being written
    return {**sizes, "run": checkpoints * sizes["checkpoint"]}


def disk_limit(config: Config, run_size: str) -> str:
    """Returns how the size of a run's checkpoints is limited, as text after `run_size`."""
    if config.train.keep == "all":
        minutes = f"{config.train.checkpoint_minutes:g} minutes"
        return f"{run_size}, and one more every {minutes} within an epoch"
    return f"{run_size} at most"


def memory_bytes(config: Config) -> dict[str, int | None]:
    """Returns the memory of a training process of one rank at its peak, by part and in `total`.

    On CUDA this is the memory of the device, of which only tensors are counted. Otherwise it is
    the resident memory of the process, with that of its workers. A part is None if it is unknown;
    the total then leaves it out.
    """
    memory = tensor_bytes(config)
    if config.device.name == "cuda":
        return memory
    tensors = memory.pop("total") or 0
    memory["workspaces"] = int(costs.WORKSPACE_SHARE * tensors)
    memory["data"] = _data_bytes(config)
    memory["libraries"] = costs.LIBRARY_BYTES
    memory["total"] = sum(size or 0 for size in memory.values())
    return memory


def _data_bytes(config: Config) -> int | None:
    """Returns the bytes of the images in memory, of a batch, and of the workers."""
    data = config.data
    spec = input_spec(config)
    batch_size = ceil(data.batch_size / (config.device.processes or 1))
    batch = batch_size * spec.channels * spec.size**2
    batches = costs.BATCH_COPIES * costs.FLOAT_BYTES * batch
    if isinstance(data, ImageFiles):
        if not decodes_each_epoch(data):
            return None
        # Each of the three parts (training, validation, test) has workers; a worker holds a batch.
        return batches + 3 * data.workers * (costs.WORKER_BYTES + 2 * batch)
    whole = input_spec(replace(config, data=replace(data, limit=None, test_limit=None)))
    loaded = (whole.train_images or 0) + (whole.val_images or 0) + (whole.test_images or 0)
    image = spec.channels * stored_size(data) ** 2
    selected = (spec.train_images or 0) + (spec.val_images or 0)  # a copy
    return batches + image * (loaded + selected)


def tensor_bytes(config: Config) -> dict[str, int | None]:
    """Returns the bytes of the tensors of a training step on one device, by part and in `total`.

    See vggexp.models.costs.memory_bytes.
    """
    precision = expected_precision(config.device)
    processes = config.device.processes or 1
    micro_batches = config.train.accumulate * processes
    return costs.memory_bytes(
        layers(config),
        batch_size=ceil(config.data.batch_size / micro_batches),
        precision_bytes=2 if precision in ("bf16", "fp16") else 4,
        optimizer_states=costs.optimizer_states(config.optimizer.name, config.optimizer.arguments),
        ema=config.train.ema is not None,
        accumulated=micro_batches > 1,  # DDP keeps the sums of the gradients too
        fused=uses_triton(config, precision),
        frozen=config.train.freeze or 0,
    )


def expected_precision(device: Device) -> str:
    """Returns what the precision `auto` becomes.

    The processor is asked for bf16. A CUDA device is not: a GPU of recent years is assumed.
    """
    if device.precision != "auto":
        return device.precision
    if device.name == "cuda":
        return "bf16"
    if device.name == "cpu" and supports_bf16():
        return "bf16"
    return "fp32"


def uses_triton(config: Config, precision: str) -> bool:
    """Returns whether the kernels of vggexp.models.triton_ops fit the network and the device."""
    device = config.device
    if device.name != "cuda" or not device.channels_last or device.compile:
        return False
    return precision == "bf16" and isinstance(config.arch, Vgg)


def spatial_ops(config: Config) -> tuple[shapes.SpatialOp, ...]:
    """Returns the convolutions and poolings of the network in order."""
    if isinstance(config.arch, Vgg):
        return shapes.vgg_spatial_ops(config.arch.blocks)
    return {"lenet": shapes.LENET, "alexnet": shapes.ALEXNET}[config.arch.name]
