"""What a configuration may hold: types and ranges. The values, with their meaning and unit, live in conf/.

A field's type is its check: `int | None`, a `Literal` of choices, or an `Annotated` number with its range.
Groups whose members take different keys (arch, data, scheduler) have one class per member, chosen by `name`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from vggexp.models.shapes import Block


class Range(NamedTuple):
    """Allowed numbers, bounds included unless marked open."""

    low: float
    high: float
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, number: object) -> bool:
        assert isinstance(number, int | float)
        above = number > self.low if self.open_low else number >= self.low
        return above and (number < self.high if self.open_high else number <= self.high)

    def __str__(self) -> str:
        if not (self.open_low or self.open_high):
            return f"{self.low}..{self.high}"
        return f"{'>' if self.open_low else '>='} {self.low} and {'<' if self.open_high else '<='} {self.high}"


Fraction = Annotated[float, Range(0, 1, open_high=True)]  # a probability or fraction below one
Channels = Annotated[int, Range(1, 65536)]
Pixels = Annotated[int, Range(1, 4096)]
Init = Literal["kaiming", "xavier", "paper"]
PairedOverrides = dict[str, Any]  # keys and values that belong to one job of a sweep


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
    """A data set of known size and classes; vggexp.data.catalog holds its facts."""

    name: Literal["fashion_mnist", "mnist", "cifar10", "cifar100", "digits"]
    resize: Pixels | None
    batch_size: Annotated[int, Range(1, 65536)]
    root: str | None
    download: bool
    val_fraction: Fraction
    limit: Annotated[int, Range(1, 10**9)] | None
    normalize: bool
    workers: Annotated[int, Range(0, 64)]
    cache: Literal["auto", "device", "ram"]


@dataclass(frozen=True)
class Synthetic(Data):
    name: Literal["synthetic"]  # type: ignore[assignment]
    images: Annotated[int, Range(5, 10**7)]
    classes: Annotated[int, Range(2, 100_000)]
    channels: Annotated[int, Range(1, 16)]
    size: Pixels


@dataclass(frozen=True)
class ImageFolder(Data):
    name: Literal["image_folder"]  # type: ignore[assignment]
    classes: Annotated[int, Range(2, 100_000)] | None
    cache: Literal["none", "ram", "device"]  # type: ignore[assignment]


@dataclass(frozen=True)
class Augment:
    flip: Annotated[float, Range(0, 1)]
    crop: Annotated[int, Range(0, 1024)]
    scale: tuple[Annotated[float, Range(1, 16)], ...] | None
    color: Annotated[float, Range(0, 1)]
    erase: Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Optimizer:
    """`arguments` are the chosen torch.optim class's own, checked against its signature."""

    name: str
    lr: Annotated[float, Range(0, 100, open_low=True)]
    weight_decay: Annotated[float, Range(0, 10)]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Constant:
    name: Literal["constant"]
    warmup_epochs: Annotated[float, Range(0, 10_000)]


@dataclass(frozen=True)
class Step(Constant):
    name: Literal["step"]  # type: ignore[assignment]
    milestones: tuple[Annotated[float, Range(0, 100_000)], ...]
    gamma: Annotated[float, Range(0, 1, open_low=True)]


@dataclass(frozen=True)
class Cosine(Constant):
    name: Literal["cosine"]  # type: ignore[assignment]
    final_factor: Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class OneCycle(Constant):
    name: Literal["onecycle"]  # type: ignore[assignment]
    peak_fraction: Annotated[float, Range(0, 1, True, True)]
    initial_factor: Annotated[float, Range(0, 1, open_low=True)]
    final_factor: Annotated[float, Range(0, 1)]


@dataclass(frozen=True)
class Plateau(Constant):
    name: Literal["plateau"]  # type: ignore[assignment]
    gamma: Annotated[float, Range(0, 1, True, True)]
    patience: Annotated[int, Range(0, 100_000)]
    threshold: Annotated[float, Range(0, 1)]


Scheduler = Constant | Step | Cosine | OneCycle | Plateau


@dataclass(frozen=True)
class Device:
    name: Literal["cpu", "cuda", "mps"]
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"]
    channels_last: bool
    compile: bool
    threads: Annotated[int, Range(1, 4096)] | None
    deterministic: bool
    processes: Annotated[int, Range(1, 4096)] | None
    sync_batch_norm: bool | None
    timeout_minutes: Annotated[float, Range(0, 1440, open_low=True)] | None


@dataclass(frozen=True)
class Train:
    epochs: Annotated[int, Range(1, 100_000)]
    rest_minutes: Annotated[float, Range(0, 1440)]
    label_smoothing: Fraction
    ema: Annotated[float, Range(0, 1, True, True)] | None
    accumulate: Annotated[int, Range(1, 65536)]
    clip_norm: Annotated[float, Range(0, 1e9, open_low=True)] | None
    patience: Annotated[int, Range(1, 100_000)] | None
    test_each_epoch: bool
    test_weights: Literal["last", "best"]
    checkpoint_minutes: Annotated[float, Range(0, 1440)]
    keep: Literal["all", "last", "weights"]
    init_from: str | None
    init_sha256: str | None
    freeze: Annotated[int, Range(1, 12)] | None
    probe_steps: Annotated[int, Range(1, 10**9)] | None
    stop_if_dead: bool | None


@dataclass(frozen=True)
class Run:
    root: str
    name: str | None


@dataclass(frozen=True)
class Sweep:
    objective: str
    max_jobs: Annotated[int, Range(1, 10**7)]
    pairs: tuple[PairedOverrides, ...]
    repeats: Annotated[int, Range(1, 100_000)]
    where: str | None
    dry_run: bool
    on_error: Literal["continue", "stop"]
    retry_failed: bool


@dataclass(frozen=True)
class Config:
    arch: Arch
    data: Data | Synthetic | ImageFolder
    augment: Augment
    optimizer: Optimizer
    scheduler: Scheduler
    device: Device
    train: Train
    run: Run
    sweep: Sweep
    seed: Annotated[int, Range(0, 2**63 - 1)]
    resume: Literal["auto", "never", "exact", "force"]
