import os
from math import ceil
from pathlib import Path
from typing import NamedTuple

from vggexp.config.schema import Config, Device, ImageFolder, Synthetic, Vgg
from vggexp.data.catalog import DATASETS, folder_classes
from vggexp.errors import ConfigError
from vggexp.models import costs, shapes
from vggexp.models.costs import KEEP_NEWEST
from vggexp.system.cpu import supports_bf16


class InputSpec(NamedTuple):
    """What the network meets: [channels, size, size] images, and how many of them (None: not known before a look)."""

    channels: int
    size: int
    classes: int
    train_images: int | None
    val_images: int | None
    test_images: int | None


def input_spec(config: Config) -> InputSpec:
    """Raises ConfigError where a folder's classes are neither given nor there to be counted."""
    data = config.data
    if isinstance(data, Synthetic):
        channels = data.channels
        side = data.size
        classes = data.classes
        train = data.images
        test = data.images // 5
    elif isinstance(data, ImageFolder):
        return InputSpec(
            3, data.resize or 224, data.classes or _folder_classes(data), None, None, None
        )
    else:
        facts = DATASETS[data.name]
        channels = facts.channels
        side = facts.size
        classes = len(facts.classes)
        train = facts.train_images
        test = facts.test_images
    train = min(train, data.limit or train)
    val = round(train * data.val_fraction)
    return InputSpec(channels, data.resize or side, classes, train - val, val, test)


def _folder_classes(data: ImageFolder) -> int:
    if data.root is None:
        raise ConfigError(
            "data.root=null: give the folder that holds train/ and test/, or data.classes=N to plan"
        )
    if not os.path.isdir(data.root):
        raise ConfigError(f"data.root={data.root}: no such directory")
    return len(folder_classes(Path(data.root)))


def layers(config: Config) -> list[shapes.Layer]:
    """The network's table. Raises ValueError where the image is too small."""
    given = input_spec(config)
    facts = {"in_channels": given.channels, "size": given.size, "classes": given.classes}
    if isinstance(config.arch, Vgg):
        arch = config.arch
        return shapes.vgg_layers(arch.blocks, arch.norm, arch.hidden, arch.width, **facts)
    table = {"lenet": shapes.lenet_layers, "alexnet": shapes.alexnet_layers}
    return table[config.arch.name](**facts)


def training_macs(config: Config) -> int:
    """Multiply-adds of all forward passes in training; of one image an epoch where their number is not known."""
    return (
        shapes.macs(layers(config)) * (input_spec(config).train_images or 1) * config.train.epochs
    )


def disk_bytes(config: Config) -> dict[str, int]:
    """What lies on the disk: one `checkpoint`, the `weights` alone, and the most that the `run` needs at a time."""
    train = config.train
    states = costs.optimizer_states(config.optimizer.name, config.optimizer.arguments)
    sizes = costs.disk_bytes(layers(config), optimizer_states=states, ema=train.ema is not None)
    kept = train.epochs if train.keep == "all" else KEEP_NEWEST + bool(config.data.val_fraction)
    return {**sizes, "run": (kept + 1) * sizes["checkpoint"]}  # one more while it is written


def memory_bytes(config: Config) -> dict[str, int | None]:
    """What a training step holds on one device, by part and in `total`; see costs.memory_bytes."""
    precision = expected_precision(config.device)
    return costs.memory_bytes(
        layers(config),
        batch_size=ceil(
            config.data.batch_size / (config.train.accumulate * (config.device.processes or 1))
        ),
        precision_bytes=2 if precision in ("bf16", "fp16") else 4,
        optimizer_states=costs.optimizer_states(config.optimizer.name, config.optimizer.arguments),
        ema=config.train.ema is not None,
        accumulated=config.train.accumulate > 1
        or (config.device.processes or 1) > 1,  # DDP keeps them too
        fused=uses_triton(config, precision),
        frozen=config.train.freeze or 0,
    )


def expected_precision(device: Device) -> str:
    """What `auto` becomes on this processor; for a GPU, which is not asked, on one of the last years."""
    if device.precision != "auto":
        return device.precision
    return "bf16" if device.name == "cuda" or (device.name == "cpu" and supports_bf16()) else "fp32"


def uses_triton(config: Config, precision: str) -> bool:
    """Whether the network is one for the kernels of vggexp.models.triton_ops, on a machine that has what they need."""
    device = config.device
    usual = device.name == "cuda" and device.channels_last and not device.compile
    return usual and precision == "bf16" and isinstance(config.arch, Vgg)


def spatial_ops(config: Config) -> tuple[shapes.SpatialOp, ...]:
    if isinstance(config.arch, Vgg):
        return shapes.vgg_spatial_ops(config.arch.blocks)
    return {"lenet": shapes.LENET, "alexnet": shapes.ALEXNET}[config.arch.name]
