"""From configuration to objects: the one place that knows both."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vggexp import dist, precision
from vggexp.config.hints import cures
from vggexp.config.rules import fused, inputs, layers
from vggexp.config.schema import Config, ImageFolder, LeNet, Synthetic, Vgg
from vggexp.data.batches import Batches, Resident, Streaming
from vggexp.data.decoding import decode
from vggexp.data.folder import FolderIndex, index_folder
from vggexp.data.sources import ImageSet, Loaded, load, synthetic
from vggexp.data.split import choose, train_val_split
from vggexp.data.transforms import Augment, Preprocess, color_basis, statistics
from vggexp.ddp import Summed
from vggexp.ema import Ema
from vggexp.errors import CheckpointError, ConfigError, DataError
from vggexp.graphs import Recorded
from vggexp.metrics import Sums
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.norm import synchronize
from vggexp.models.transfer import freeze
from vggexp.models.vgg import fuse, vgg
from vggexp.optim import optimizer
from vggexp.probe import Probe
from vggexp.schedules import schedule
from vggexp.step import gradients
from vggexp.train import Plan, State


@dataclass(frozen=True)
class Hardware:
    """The device and what was resolved for it; made once, before anything is built on it."""

    device: torch.device
    precision: str
    threads: int
    autocast: Callable[[], AbstractContextManager]


def present(device: str) -> bool:
    """Whether this machine has it: cpu, cuda or mps."""
    return {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}[device]


def hardware(config: Config, threads: int | None = None) -> Hardware:
    """Sets torch's switches. threads: of the run that is continued, where there is one.

    Raises ConfigError where this machine lacks the device or the format.
    """
    wanted = config.device
    if not present(wanted.name):
        raise ConfigError(f"device={wanted.name}: no usable device (torch {torch.__version__}); use device=cpu")
    device = dist.device(wanted.name)
    resolved = precision.resolve(wanted.precision, device)
    if resolved == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError("device.precision=bf16: this GPU does not multiply it; use fp16 or fp32")
    threads = precision.prepare(device, resolved, wanted.deterministic, wanted.threads or threads)
    return Hardware(device, resolved, threads, partial(precision.autocast, resolved, device))


def with_classes(config: Config, classes: int) -> Config:
    """The configuration of a finished run, whose folder of pictures need not be at hand to be counted."""
    if not isinstance(config.data, ImageFolder):
        return config
    return replace(config, data=replace(config.data, classes=classes))


def network(config: Config) -> nn.Sequential:
    """The network with its initial weights, on the CPU."""
    arch, given = config.arch, inputs(config)
    facts = {"in_channels": given.channels, "size": given.size, "classes": given.classes}
    if isinstance(arch, Vgg):
        net = vgg(arch.blocks, norm=arch.norm, hidden=arch.hidden, dropout=arch.dropout, width=arch.width, **facts)
    elif isinstance(arch, LeNet):
        net = lenet(**facts)
    else:
        net = alexnet(dropout=arch.dropout, **facts)
    initialize(net, arch.init, config.seed)
    return net


def state(config: Config, hardware: Hardware, steps_per_epoch: int) -> State:
    """Everything that changes in a run, at its start."""
    net = _placed(network(config), config, hardware)
    freeze(net, config.train.freeze or 0)
    if dist.size() > 1 and config.device.sync_batch_norm is not False:
        synchronize(net)
    ema = None if config.train.ema is None else Ema(net, config.train.ema)
    if config.device.compile:
        net.compile()
    chosen, course = config.optimizer, config.scheduler
    own = {key: value for key, value in vars(course).items() if key not in ("name", "warmup_epochs")}
    return State(
        net=net,
        optimizer=optimizer(chosen.name, net, chosen.lr, chosen.weight_decay, chosen.arguments),
        schedule=schedule(
            course.name, chosen.lr, course.warmup_epochs,
            epochs=config.train.epochs, steps_per_epoch=steps_per_epoch, **own,
        ),
        scaler=precision.scaler(hardware.precision, hardware.device),
        ema=ema,
        sums=Sums(hardware.device),
        micro_batches=config.train.accumulate,
    )  # fmt: skip


def trained(config: Config, hardware: Hardware, weights: dict[str, Tensor]) -> nn.Sequential:
    """The network as it was when a run took its test, in eval mode. weights: of `checkpoint.weights_of`.

    Raises CheckpointError.
    """
    net = network(config)
    try:
        net.load_state_dict(weights)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoints: the weights do not fit config.yaml: {told}") from error
    net = _placed(net, config, hardware)
    if config.device.compile and config.train.ema is None:  # the moving average is a plain copy
        net.compile()
    return net.eval()


def _placed(net: nn.Sequential, config: Config, hardware: Hardware) -> nn.Sequential:
    if fused(config, hardware.precision) and precision.has_triton():
        fuse(net)
    memory = torch.channels_last if config.device.channels_last else torch.contiguous_format
    return net.to(hardware.device).to(memory_format=memory)


def plan(config: Config, hardware: Hardware) -> Plan:
    train = config.train
    return Plan(
        device=hardware.device,
        seed=config.seed,
        epochs=train.epochs,
        batch_size=config.data.batch_size,
        label_smoothing=train.label_smoothing,
        clip_norm=train.clip_norm,
        patience=train.patience,
        rest_minutes=train.rest_minutes,
        autocast=hardware.autocast,
        gradients=_gradients(config),
        probe=probe(config),
    )


def _gradients(config: Config) -> Callable[..., tuple[Tensor, Tensor]]:
    if dist.size() > 1:
        return Summed()
    return Recorded() if config.device.name == "cuda" and not config.device.compile else gradients


def probe(config: Config) -> Probe | None:
    steps = config.train.probe_steps
    return None if steps is None else Probe(steps, layers(config), cures(config), bool(config.train.stop_if_dead))


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's, for streamed folders


@dataclass(frozen=True)
class Datasets:
    """What a run trains on, validates on (None without a split) and tests on, and what to know about it."""

    train: Batches
    val: Batches | None
    test: Batches
    classes: tuple[str, ...]
    preprocess: Preprocess
    pictures: Callable[[Tensor], Tensor]  # places in the test set -> uint8 [N, C, H, W]
    fingerprint: dict[str, str]
    origin: str

    def changed(self, there: Mapping[str, str]) -> str:
        """The files that are not those of another fingerprint, or nothing."""
        here = self.fingerprint
        return ", ".join(name for name in sorted({*there, *here}) if there.get(name) != here.get(name))


def data(config: Config, device: torch.device, warn: Callable[[str], None] = print) -> Datasets:
    """Reads and checks the data set. Raises DataError. warn: told of a worker process that had to be replaced."""
    wanted = config.data
    if isinstance(wanted, ImageFolder):
        index = index_folder(Path(wanted.root or ""))
        if wanted.classes not in (None, len(index.train.classes)):
            raise DataError(f"{wanted.root}: {len(index.train.classes)} classes, but data.classes={wanted.classes}")
        return (
            _streamed(config, index, device, warn)
            if wanted.cache == "none"
            else _resident(config, _decoded(config, index), device)
        )
    if isinstance(wanted, Synthetic):
        loaded = synthetic(wanted.images, wanted.classes, wanted.channels, wanted.size)
    else:
        loaded = load(wanted.name, Path(wanted.root) if wanted.root else None, wanted.download)
    return _resident(config, loaded, device)


def _resident(config: Config, loaded: Loaded[ImageSet], device: torch.device) -> Datasets:
    """Every image in memory."""
    wanted = config.data
    train, val = _split(loaded.train.labels, config)
    images = loaded.train.images[train]
    mean, std = _normalization(config, images)
    preprocess = Preprocess(inputs(config).size, mean, std, config.device.channels_last)
    make = partial(
        Resident, preprocess=preprocess, batch_size=wanted.batch_size, device=device, seed=config.seed,
        cache=wanted.cache,
    )  # fmt: skip
    score = partial(make, batch_size=dist.part(wanted.batch_size))
    return Datasets(
        train=make(images, loaded.train.labels[train], augment=Augment(**vars(config.augment))),
        val=score(loaded.train.images[val], loaded.train.labels[val]) if len(val) else None,
        test=score(loaded.test.images, loaded.test.labels),
        classes=loaded.train.classes,
        preprocess=preprocess,
        pictures=lambda places: loaded.test.images[places],
        fingerprint=loaded.fingerprint,
        origin=loaded.origin,
    )


def _normalization(config: Config, images: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Mean and deviation of the training images; ImageNet's for a folder, whose own would take reading it whole."""
    if not config.data.normalize:
        return None, None
    if images is None or isinstance(config.data, ImageFolder):
        return torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return statistics(images)


def _decoded(config: Config, index: Loaded[FolderIndex]) -> Loaded[ImageSet]:
    """A folder's pictures, decoded once and kept at the network's size."""
    size, workers = inputs(config).size, config.data.workers
    train, test = (
        ImageSet(decode(part.paths, size, workers), torch.tensor(part.labels), part.classes)
        for part in (index.train, index.test)
    )
    return Loaded(train, test, index.fingerprint, index.origin)


def _streamed(
    config: Config, index: Loaded[FolderIndex], device: torch.device, warn: Callable[[str], None]
) -> Datasets:
    """A folder's pictures, decoded in every epoch."""
    wanted, size = config.data, inputs(config).size
    labels = torch.tensor(index.train.labels)
    train, val = _split(labels, config)
    mean, std = _normalization(config, None)
    preprocess = Preprocess(size, mean, std, config.device.channels_last)
    make = partial(
        Streaming, preprocess=preprocess, batch_size=wanted.batch_size, device=device, workers=wanted.workers,
        seed=config.seed, warn=warn,
    )  # fmt: skip
    score = partial(make, batch_size=dist.part(wanted.batch_size))

    def paths(places: Tensor) -> list[Path]:
        return [index.train.paths[place] for place in places.tolist()]

    # The colours of a few hundred pictures tell the components well enough.
    sample = decode(paths(train[:: max(1, len(train) // 256)]), size, 0) if config.augment.color else None
    return Datasets(
        train=make(
            paths(train), labels[train].tolist(), augment=Augment(**vars(config.augment)),
            basis=None if sample is None else color_basis(sample),
        ),
        val=score(paths(val), labels[val].tolist()) if len(val) else None,
        test=score(index.test.paths, index.test.labels),
        classes=index.train.classes,
        preprocess=preprocess,
        pictures=lambda places: decode([index.test.paths[place] for place in places.tolist()], size, 0),
        fingerprint=index.fingerprint,
        origin=index.origin,
    )  # fmt: skip


def _split(labels: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """Places of the training and of the validation images, both taken from the first `limit` drawn."""
    if config.data.limit is None or config.data.limit >= len(labels):
        return train_val_split(labels, config.data.val_fraction, config.seed)
    limited = choose(labels, config.data.limit, config.seed, "limit")
    train, val = train_val_split(labels[limited], config.data.val_fraction, config.seed)
    return limited[train], limited[val]


def preprocessing(config: Config, mean: Tensor | None, std: Tensor | None) -> Preprocess:
    """What stands before the network of a finished run, on the CPU."""
    return Preprocess(inputs(config).size, mean, std)
