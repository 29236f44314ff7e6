"""What may not stand together: the checks between keys that no single type can make. Arithmetic only, no torch."""

import os
import re
from collections.abc import Iterator

from vggexp.config.derived import InputSpec, input_spec, spatial_ops
from vggexp.config.parse import Invalid
from vggexp.config.schema import Augment, Config, ImageFolder, Plateau, Step, Vgg
from vggexp.config.torch_optim import optimizer_problems
from vggexp.errors import ConfigError
from vggexp.formatting import format_value
from vggexp.models import shapes

RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]{0,119}")
SHA256 = re.compile(r"[0-9a-f]{64}")
WINDOWS_DEVICES = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
_INVALID_VALUE_ERRORS = (
    AttributeError,
    KeyError,
    TypeError,
)  # what asking an Unread value leads to
OBJECTIVES = (
    "val/accuracy",
    "val/loss",
    "test/accuracy",
    "test/loss",
    "train/accuracy",
    "train/loss",
)


def validate(config: Config, whole: bool = True) -> list[str]:
    """Every rule that the configuration breaks, each as one problem.

    whole: False where values could not be read. A rule that needs such a value has nothing more to say.
    """
    problems: list[str] = []
    given: InputSpec = Invalid()  # type: ignore[assignment]
    try:
        given = input_spec(config)
    except ConfigError as error:
        problems += error.problems
        whole = False
    except _INVALID_VALUE_ERRORS:
        if whole:
            raise
    for rule in (_arch, _data, _augment, _scheduler, _device, _ranks, _train, _run, _optimizer):
        try:
            problems.extend(rule(config, given))
        except _INVALID_VALUE_ERRORS:
            if whole:
                raise
    return problems


def _arch(config: Config, given: InputSpec) -> Iterator[str]:
    if isinstance(config.arch, Vgg) and not 1 <= len(config.arch.blocks) <= 12:
        yield f"arch.blocks={format_value(config.arch.blocks)}: needs 1..12 blocks"
    elif problem := shapes.too_small(given.size, spatial_ops(config)):
        yield f"data.resize={format_value(config.data.resize)}: {problem}"


def _data(config: Config, given: InputSpec) -> Iterator[str]:
    data = config.data
    if data.root is not None and os.path.exists(data.root) and not os.path.isdir(data.root):
        yield f"data.root={data.root}: not a directory"
    elif (
        data.root is not None
        and isinstance(data, ImageFolder)
        and data.classes
        and not os.path.isdir(data.root)
    ):
        yield f"data.root={data.root}: no such directory"
    elif data.root is not None and not data.download and not os.path.isdir(data.root):
        yield f"data.root={data.root}: no such directory (data.download=true would fetch into it)"
    if given.train_images is not None and data.batch_size > given.train_images:
        yield f"data.batch_size={data.batch_size}: more than the {given.train_images} training images"
    if data.val_fraction and given.val_images is not None and given.val_images < given.classes:
        yield (
            f"data.val_fraction={data.val_fraction:g}: {given.val_images} validation images for "
            f"{given.classes} classes; at least one each, or 0"
        )


def _augment(config: Config, given: InputSpec) -> Iterator[str]:
    augment: Augment = config.augment
    if augment.crop >= given.size:
        yield f"augment.crop={augment.crop}: must be below the image's {given.size} pixels"
    scale = augment.scale
    if scale is not None and (len(scale) != 2 or scale[0] > scale[1]):
        yield f"augment.scale={format_value(scale)}: needs [low,high] with low <= high"


def _scheduler(config: Config, given: InputSpec) -> Iterator[str]:
    scheduler = config.scheduler
    if scheduler.warmup_epochs > config.train.epochs:
        yield f"scheduler.warmup_epochs={scheduler.warmup_epochs:g}: more than train.epochs={config.train.epochs}"
    if isinstance(scheduler, Step):
        rising = all(
            early < late
            for early, late in zip(scheduler.milestones, scheduler.milestones[1:], strict=False)
        )
        if not (scheduler.milestones and rising):
            yield f"scheduler.milestones={format_value(scheduler.milestones)}: must be numbers of epochs that rise"
    if isinstance(scheduler, Plateau) and not config.data.val_fraction:
        yield "scheduler=plateau: watches the validation accuracy, but data.val_fraction=0"


def _optimizer(config: Config, given: InputSpec) -> Iterator[str]:
    optimizer = config.optimizer
    yield from optimizer_problems(optimizer.name, optimizer.weight_decay, optimizer.arguments)


def _device(config: Config, given: InputSpec) -> Iterator[str]:
    device = config.device
    if device.precision == "tf32" and device.name != "cuda":
        yield f"device.precision=tf32: a format of CUDA devices, not of {device.name}"
    if device.precision == "fp16" and device.name == "cpu":
        yield "device.precision=fp16: not trained on a processor; use bf16 or fp32"
    if (
        device.deterministic
        and device.name == "cuda"
        and isinstance(config.arch, Vgg)
        and config.arch.norm == "lrn"
    ):
        # torch documents that AvgPool3d, which its response norm is made of, raises in the backward pass
        yield "device.deterministic=true: arch.norm=lrn has no deterministic form on CUDA; use none or batch"


def _ranks(config: Config, given: InputSpec) -> Iterator[str]:
    device = config.device
    batch_size = config.data.batch_size
    parts = config.train.accumulate
    ranks = device.processes or 1
    if ranks > 1 and device.name == "mps":
        yield f"device.processes={ranks}: an Apple GPU takes one process; leave it out, or use device=cpu"
    if ranks > batch_size:
        yield f"device.processes={ranks}: more than data.batch_size={batch_size}, which they share"
    elif 1 < ranks and parts <= batch_size < ranks * parts:
        yield f"train.accumulate={parts}: more than the {batch_size // ranks} images of a batch that each rank takes"


def _train(config: Config, given: InputSpec) -> Iterator[str]:
    train = config.train
    if train.accumulate > config.data.batch_size:
        yield f"train.accumulate={train.accumulate}: more than data.batch_size={config.data.batch_size}"
    if train.stop_if_dead and train.probe_steps is None:
        yield "train.stop_if_dead=true: needs train.probe_steps, but it is null"
    for key, wants in (
        ("patience", train.patience is not None),
        ("test_weights", train.test_weights == "best"),
    ):
        if wants and not config.data.val_fraction:
            yield f"train.{key}={format_value(getattr(train, key))}: needs a validation split, but data.val_fraction=0"
    if train.init_sha256 is not None and not SHA256.fullmatch(train.init_sha256):
        yield f"train.init_sha256={train.init_sha256}: must be 64 digits 0..9 a..f or null"
    for key in ("init_sha256", "freeze"):
        if getattr(train, key) is not None and train.init_from is None:
            yield f"train.{key}={format_value(getattr(train, key))}: needs train.init_from, which names the weights"
    blocks = spatial_ops(config)[-1].block
    if train.freeze is not None and train.freeze > blocks:
        yield f"train.freeze={train.freeze}: more than the network's {blocks} blocks"


def _run(config: Config, given: InputSpec) -> Iterator[str]:
    name = config.run.name
    if name is not None and (not RUN_NAME.fullmatch(name) or WINDOWS_DEVICES.fullmatch(name)):
        allowed = "1..120 letters, digits or _ . + = , - (the first a letter, digit or _), no device name of Windows"
        yield f"run.name={name}: must be {allowed}"
    if name == "sweeps":
        yield "run.name=sweeps: the folder of the sweeps; choose another"
    if os.path.exists(config.run.root) and not os.path.isdir(config.run.root):
        yield f"run.root={config.run.root}: not a directory"
    if config.sweep.objective not in OBJECTIVES:
        yield f"sweep.objective={config.sweep.objective}: allowed {', '.join(OBJECTIVES)}"
