"""Types and ranges of every key. The values, with their meaning and unit, are in conf/.

The type of a field is its check: `int | None`, a `Literal` of choices, or an `Annotated` number
with its range. Groups whose files have different keys (arch, data, scheduler) have one class for
each set of keys; the key `name` selects the class.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from vggexp.data.torchvision_sets import ARRAY_SETS, FILE_SETS
from vggexp.models.shapes import Block


class Range(NamedTuple):
    """Allowed numbers. Both bounds are included unless they are marked as open."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int | float)
        if number == self.low:
            return not self.open_low
        if number == self.high:
            return not self.open_high
        return self.low < number < self.high

    def __str__(self) -> str:
        if not (self.open_low or self.open_high):
            return f"{self.low}..{self.high}"
        above = ">" if self.open_low else ">="
        below = "<" if self.open_high else "<="
        return f"{above} {self.low} and {below} {self.high}"


Share = Annotated[float, Range(0, 1)]
Fraction = Annotated[float, Range(0, 1, open_high=True)]  # a probability or share below one
PositiveShare = Annotated[float, Range(0, 1, open_low=True)]
InnerShare = Annotated[float, Range(0, 1, open_low=True, open_high=True)]
Channels = Annotated[int, Range(1, 65536)]
BatchSize = Annotated[int, Range(1, 65536)]
Classes = Annotated[int, Range(2, 100_000)]
Pixels = Annotated[int, Range(1, 4096)]
Processes = Annotated[int, Range(1, 4096)]  # processes or threads
Epochs = Annotated[int, Range(1, 100_000)]
Minutes = Annotated[float, Range(0, 1440)]
Large = Annotated[int, Range(1, 10**9)]  # a number without a practical limit
Seed = Annotated[int, Range(0, 2**63 - 1)]
Init = Literal["kaiming", "xavier", "paper", "dirac"]
PairedOverrides = dict[str, Any]  # keys and values that belong to one job of a sweep


def is_rest_field(value: dataclasses.Field[Any]) -> bool:
    """Returns whether the field holds all keys of its section that have no field of their own."""
    return bool(value.metadata.get("rest"))


NAME_KEYS = ("run.name", "run.network", "run.label")
NAME_CHARACTERS = "letters a-z A-Z, digits or _ . + = , - (the first a letter, digit or _)"


@dataclass(frozen=True)
class Vgg:
    name: Literal["vgg"]
    blocks: tuple[Block, ...]
    norm: Literal["none", "batch", "lrn"]
    hidden: tuple[Channels, ...]
    dropout: Fraction
    width: Annotated[float, Range(0, 16, open_low=True)]
    init: Init


@dataclass(frozen=True)
class LeNet:
    name: Literal["lenet"]
    init: Init


@dataclass(frozen=True)
class AlexNet:
    name: Literal["alexnet"]
    dropout: Fraction
    init: Init


Arch = Vgg | LeNet | AlexNet


@dataclass(frozen=True)
class Data:
    """A data set of known size and classes; see vggexp.data.catalog."""

    name: Literal["fashion_mnist", "mnist", "cifar10", "cifar100", "digits"]
    resize: Pixels | None
    batch_size: BatchSize
    root: str | None
    download: bool
    val_fraction: Fraction
    limit: Large | None
    test_limit: Large | None
    normalize: bool
    workers: Annotated[int, Range(0, 64)]
    cache: Literal["auto", "device", "ram"]


@dataclass(frozen=True)
class Synthetic(Data):
    name: Literal["synthetic"]  # type: ignore[assignment]
    images: Annotated[int, Range(5, 10**7)]
    classes: Classes
    channels: Annotated[int, Range(1, 16)]
    size: Pixels


@dataclass(frozen=True)
class ImageFiles(Data):
    """Images in files of their own, which are decoded when they are needed."""

    classes: Classes | None
    sha256: str | None
    test_fraction: InnerShare | None
    cache: Literal["auto", "none", "ram", "device"]  # type: ignore[assignment]


@dataclass(frozen=True)
class ImageFolder(ImageFiles):
    name: Literal["image_folder"]  # type: ignore[assignment]
    cache: Literal["none", "ram", "device"]  # type: ignore[assignment]


@dataclass(frozen=True)
class TorchvisionFiles(ImageFiles):
    """`arguments` are those of the class of torchvision.datasets; see torchvision_arguments."""

    name: Literal[*FILE_SETS]  # type: ignore[assignment, valid-type]
    train_images: Large | None
    test_images: Large | None
    arguments: dict[str, Any] = field(metadata={"rest": True})


@dataclass(frozen=True)
class TorchvisionArrays(Data):
    """A data set of torchvision that is read whole."""

    name: Literal[*ARRAY_SETS]  # type: ignore[assignment, valid-type]
    classes: Classes | None
    sha256: str | None
    test_fraction: InnerShare | None
    train_images: Large | None
    test_images: Large | None
    arguments: dict[str, Any] = field(metadata={"rest": True})


Torchvision = TorchvisionArrays | TorchvisionFiles


@dataclass(frozen=True)
class Augment:
    flip: Share
    crop: Annotated[int, Range(0, 1024)]
    scale: tuple[Annotated[float, Range(1, 16)], ...] | None
    color: Share
    erase: Share
    mixup: Annotated[float, Range(0, 100, open_low=True)] | None
    cutmix: Annotated[float, Range(0, 100, open_low=True)] | None
    flip_only_fraction: InnerShare | None


@dataclass(frozen=True)
class Optimizer:
    """`arguments` are those of the torch.optim class `name`, checked against its signature."""

    name: str
    lr: Annotated[float, Range(0, 100, open_low=True)]
    weight_decay: Annotated[float, Range(0, 10)]
    arguments: dict[str, Any] = field(metadata={"rest": True})


@dataclass(frozen=True)
class Constant:
    name: Literal["constant"]
    warmup_epochs: Annotated[float, Range(0, 10_000)]


@dataclass(frozen=True)
class Step(Constant):
    name: Literal["step"]  # type: ignore[assignment]
    milestones: tuple[Annotated[float, Range(0, 100_000)], ...]
    gamma: PositiveShare


@dataclass(frozen=True)
class Cosine(Constant):
    name: Literal["cosine"]  # type: ignore[assignment]
    final_factor: Share


@dataclass(frozen=True)
class OneCycle(Constant):
    name: Literal["onecycle"]  # type: ignore[assignment]
    peak_fraction: InnerShare
    initial_factor: PositiveShare
    final_factor: Share


@dataclass(frozen=True)
class Plateau(Constant):
    name: Literal["plateau"]  # type: ignore[assignment]
    gamma: InnerShare
    patience: Annotated[int, Range(0, 100_000)]
    threshold: Share


Scheduler = Constant | Step | Cosine | OneCycle | Plateau


@dataclass(frozen=True)
class Device:
    name: Literal["cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    threads: Processes | None
    deterministic: bool
    processes: Processes | None
    sync_batch_norm: bool | None
    timeout_minutes: Annotated[float, Range(0, 1440, open_low=True)] | None


@dataclass(frozen=True)
class Train:
    epochs: Epochs
    rest_minutes: Minutes
    label_smoothing: Fraction
    ema: InnerShare | None
    accumulate: BatchSize
    clip_norm: Annotated[float, Range(0, 1e9, open_low=True)] | None
    patience: Epochs | None
    test_each_epoch: bool
    test_weights: Literal["last", "best"]
    test_flip: bool | None
    test_shift: Annotated[int, Range(1, 100)] | None
    checkpoint_minutes: Minutes
    keep: Literal["all", "last", "weights"]
    init_from: str | None
    init_sha256: str | None
    freeze: Annotated[int, Range(1, 12)] | None
    probe_steps: Large | None
    stop_if_dead: bool | None
    log_steps: Annotated[int, Range(0, 10**9)] | None


@dataclass(frozen=True)
class Run:
    root: str
    name: str | None
    network: str | None
    label: str | None
    until: Epochs | None


@dataclass(frozen=True)
class Sweep:
    objective: str
    max_jobs: Annotated[int, Range(1, 10**7)]
    pairs: tuple[PairedOverrides, ...]
    repeats: Annotated[int, Range(1, 100_000)]
    where: str | None
    halving: Annotated[int, Range(2, 100)] | None
    halving_start: Epochs | None
    lr_range: bool | None
    dry_run: bool
    on_error: Literal["continue", "stop"]
    retry_failed: bool


@dataclass(frozen=True)
class Config:
    arch: Arch
    data: Data | Synthetic | ImageFolder | Torchvision
    augment: Augment
    optimizer: Optimizer
    scheduler: Scheduler
    device: Device
    train: Train
    run: Run
    sweep: Sweep
    seed: Seed
    resume: Literal["auto", "never", "exact", "force"]
