"""Checks between keys that no single type can make. Arithmetic only, no torch."""

import os
import re
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from vggexp.config import torch_optim, torchvision_arguments
from vggexp.config.derived import INPUT_KEYS, InputSpec, input_spec, is_counted, spatial_ops
from vggexp.config.labels import MAX_LABEL_CHARS, MAX_NETWORK_CHARS
from vggexp.config.schema import (
    NAME_CHARACTERS,
    Arch,
    Config,
    ImageFolder,
    OneCycle,
    Plateau,
    Step,
    Synthetic,
    Torchvision,
    Vgg,
)
from vggexp.data.catalog import folder_layout
from vggexp.data.torchvision_sets import TORCHVISION_SETS
from vggexp.errors import ConfigError
from vggexp.formatting import format_value
from vggexp.models import shapes

MAX_BLOCKS = 12
RUN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]{0,119}")
WINDOWS_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\..*)?")
RUN_FILES = ("config.yaml", "result.json")  # a folder that holds both is that of a run
SWEEP_FILES = ("runs.json", "results.csv", "study.log")  # one of them marks the folder of a sweep
SHA256 = re.compile(r"[0-9a-f]{64}")
OBJECTIVES = (
    "val/accuracy",
    "val/loss",
    "test/accuracy",
    "test/loss",
    "train/accuracy",
    "train/loss",
)

Problems = Iterator[str]


class Rule(NamedTuple):
    """A check, and the keys whose values the check reads."""

    keys: tuple[str, ...]
    needs_input: bool  # whether the check also reads the InputSpec
    check: Callable[..., Problems]


RULES: list[Rule] = []  # in the order in which their problems are printed


def rule(
    *keys: str,
    needs_input: bool = False,
) -> Callable[[Callable[..., Problems]], Callable[..., Problems]]:
    """Adds a check to RULES; `keys` are all keys whose values the check reads."""

    def add(check: Callable[..., Problems]) -> Callable[..., Problems]:
        RULES.append(Rule(keys, needs_input, check))
        return check

    return add


def validate(config: Config, invalid: Collection[str] = ()) -> list[str]:
    """Returns the problems of all rules that the configuration breaks.

    Args:
        invalid: keys without a valid value. A rule that reads one of them, or a key inside or
            around one of them, is skipped.
    """
    problems: list[str] = []
    spec: InputSpec | None = None
    if not _overlap(INPUT_KEYS, invalid) and not _is_uncounted(config):
        try:
            spec = input_spec(config)
        except ConfigError as error:
            problems += error.problems
    for keys, needs_input, check in RULES:
        if _overlap(keys, invalid):
            continue
        if not needs_input:
            problems.extend(check(config))
        elif spec is not None:
            problems.extend(check(config, spec))
    return list(dict.fromkeys(problems))  # two may name the same folder


def _is_uncounted(config: Config) -> bool:
    """Returns whether only torchvision knows the input; `count_data` then validates again."""
    data = config.data
    if not isinstance(data, Torchvision):
        return False
    return not is_counted(data) or any(_check_torchvision_arguments(config))


def _overlap(keys: Collection[str], invalid: Collection[str]) -> bool:
    """Returns whether one of the keys equals, contains or is part of an invalid key."""
    for path in invalid:
        if any(_is_part(key, path) or _is_part(path, key) for key in keys):
            return True
    return False


def _is_part(path: str, section: str) -> bool:
    return path == section or path.startswith((f"{section}.", f"{section}["))


def _has_wrong_block_count(arch: Arch) -> bool:
    return isinstance(arch, Vgg) and not 1 <= len(arch.blocks) <= MAX_BLOCKS


@rule("arch.blocks")
def _check_block_count(config: Config) -> Problems:
    if isinstance(config.arch, Vgg) and _has_wrong_block_count(config.arch):
        blocks = format_value(config.arch.blocks)
        yield f"arch.blocks={blocks}: needs 1..{MAX_BLOCKS} blocks"


@rule("arch.blocks", needs_input=True)
def _check_image_size(config: Config, spec: InputSpec) -> Problems:
    if _has_wrong_block_count(config.arch):
        return
    if problem := shapes.size_problem(spec.size, spatial_ops(config)):
        yield f"data.resize={format_value(config.data.resize)}: {problem}"


@rule("data.root")
def _check_root_is_a_directory(config: Config) -> Problems:
    root = config.data.root
    if root is not None and os.path.exists(root) and not os.path.isdir(root):
        yield f"data.root={root}: not a directory"


@rule("data.root", "data.name", "data.classes", "data.download")
def _check_root_exists(config: Config) -> Problems:
    data = config.data
    if data.root is None or os.path.exists(data.root) or isinstance(data, Synthetic):
        return
    info = TORCHVISION_SETS.get(data.name)
    can_fetch = not isinstance(data, ImageFolder) and (info is None or info.downloads)
    if not (can_fetch and data.download):
        hint = " (data.download=true would fetch into it)" if can_fetch else ""
        yield f"data.root={data.root}: no such directory{hint}"


@rule("data.batch_size", needs_input=True)
def _check_batch_size(config: Config, spec: InputSpec) -> Problems:
    batch_size = config.data.batch_size
    if spec.train_images is not None and batch_size > spec.train_images:
        most = spec.train_images
        yield f"data.batch_size={batch_size}: more than the {most} training images; choose {most}"


@rule("data.val_fraction", needs_input=True)
def _check_validation_images(config: Config, spec: InputSpec) -> Problems:
    fraction = config.data.val_fraction
    if not fraction or spec.val_images is None:
        return
    if spec.val_images < spec.classes:
        counts = f"{spec.val_images} validation images for {spec.classes} classes"
        yield f"data.val_fraction={fraction:g}: {counts}; at least one each, or 0"


def image_count_problems(config: Config, spec: InputSpec) -> list[str]:
    """Returns the problems of the numbers of images; those of a folder are known only later."""
    return [*_check_batch_size(config, spec), *_check_validation_images(config, spec)]


@rule("augment.crop", "train.test_shift", needs_input=True)
def _check_shifts(config: Config, spec: InputSpec) -> Problems:
    shifts = {"augment.crop": config.augment.crop, "train.test_shift": config.train.test_shift or 0}
    for key, pixels in shifts.items():
        if pixels >= spec.size:
            yield f"{key}={pixels}: must be below the image's {spec.size} pixels"


@rule("augment.scale")
def _check_scale(config: Config) -> Problems:
    scale = config.augment.scale
    if scale is None:
        return
    if len(scale) != 2 or scale[0] > scale[1]:
        yield f"augment.scale={format_value(scale)}: needs [low,high] with low <= high"


@rule("scheduler.warmup_epochs", "train.epochs")
def _check_warmup(config: Config) -> Problems:
    warmup = config.scheduler.warmup_epochs
    epochs = config.train.epochs
    if warmup > epochs:
        yield f"scheduler.warmup_epochs={warmup:g}: more than train.epochs={epochs}"


@rule("scheduler.name", "scheduler.warmup_epochs")
def _check_one_rise(config: Config) -> Problems:
    warmup = config.scheduler.warmup_epochs
    if isinstance(config.scheduler, OneCycle) and warmup > 0:
        yield (
            f"scheduler.warmup_epochs={warmup:g}: scheduler=onecycle rises by itself, and would "
            "begin at initial_factor of the rate that the warm-up has reached; "
            "set scheduler.warmup_epochs=0"
        )


@rule("scheduler.milestones", "scheduler.warmup_epochs")
def _check_milestones(config: Config) -> Problems:
    if not isinstance(config.scheduler, Step):
        return
    milestones = config.scheduler.milestones
    warmup = config.scheduler.warmup_epochs
    shown = f"scheduler.milestones={format_value(milestones)}"
    rising = all(first < second for first, second in pairwise(milestones))
    if not milestones or not rising:
        yield f"{shown}: must be numbers of epochs that rise"
    elif milestones[0] < warmup:
        yield (
            f"{shown}: the learning rate drops before the warm-up has reached optimizer.lr; "
            f"at least scheduler.warmup_epochs={warmup:g}"
        )


@rule("scheduler.name", "data.val_fraction")
def _check_plateau(config: Config) -> Problems:
    if isinstance(config.scheduler, Plateau) and not config.data.val_fraction:
        yield "scheduler=plateau: watches the validation accuracy, but data.val_fraction=0"


@rule("device.precision", "device.name")
def _check_precision(config: Config) -> Problems:
    device = config.device
    if device.precision == "tf32" and device.name != "cuda":
        yield f"device.precision=tf32: a format of CUDA devices, not of {device.name}"
    if device.precision == "fp16" and device.name == "cpu":
        yield "device.precision=fp16: not trained on a processor; use bf16 or fp32"


@rule("device.deterministic", "device.name", "arch.norm")
def _check_deterministic_norm(config: Config) -> Problems:
    # torch documents that the backward pass of AvgPool3d, which computes the LRN, raises.
    device = config.device
    arch = config.arch
    on_cuda = device.deterministic and device.name == "cuda"
    if on_cuda and isinstance(arch, Vgg) and arch.norm == "lrn":
        reason = "arch.norm=lrn has no deterministic form on CUDA; use none or batch"
        yield f"device.deterministic=true: {reason}"


@rule("device.processes", "device.name")
def _check_processes_of_mps(config: Config) -> Problems:
    processes = config.device.processes or 1
    if processes > 1 and config.device.name == "mps":
        reason = "an Apple GPU takes one process; leave it out, or use device=cpu"
        yield f"device.processes={processes}: {reason}"


@rule("device.processes", "data.batch_size")
def _check_processes(config: Config) -> Problems:
    processes = config.device.processes or 1
    batch_size = config.data.batch_size
    if processes > batch_size:
        reason = f"more than data.batch_size={batch_size}, which they share"
        yield f"device.processes={processes}: {reason}"


@rule("device.processes", "data.batch_size", "train.accumulate")
def _check_micro_batches_of_a_rank(config: Config) -> Problems:
    processes = config.device.processes or 1
    batch_size = config.data.batch_size
    parts = config.train.accumulate
    is_shared = 1 < processes <= batch_size
    if is_shared and parts <= batch_size < processes * parts:
        images = batch_size // processes
        reason = f"more than the {images} images of a batch that each rank takes"
        yield f"train.accumulate={parts}: {reason}"


@rule("train.accumulate", "data.batch_size")
def _check_micro_batches(config: Config) -> Problems:
    parts = config.train.accumulate
    batch_size = config.data.batch_size
    if parts > batch_size:
        yield f"train.accumulate={parts}: more than data.batch_size={batch_size}"


@rule("train.stop_if_dead", "train.probe_steps")
def _check_stop_if_dead(config: Config) -> Problems:
    if config.train.stop_if_dead and config.train.probe_steps is None:
        yield "train.stop_if_dead=true: needs train.probe_steps, but it is null"


@rule("train.patience", "data.val_fraction")
def _check_patience(config: Config) -> Problems:
    patience = config.train.patience
    if patience is not None and not config.data.val_fraction:
        yield f"train.patience={patience}: needs a validation split, but data.val_fraction=0"


@rule("train.test_weights", "data.val_fraction")
def _check_test_weights(config: Config) -> Problems:
    if config.train.test_weights == "best" and not config.data.val_fraction:
        yield "train.test_weights=best: needs a validation split, but data.val_fraction=0"


@rule("data.name", "data.sha256")
def _check_data_sha256(config: Config) -> Problems:
    if isinstance(config.data, ImageFolder | Torchvision):
        digest = config.data.sha256
        if digest is not None and not SHA256.fullmatch(digest):
            yield f"data.sha256={digest}: must be 64 digits 0..9 a..f or null"


@rule("data.root", "data.test_fraction", "data.name")
def _check_test_fraction(config: Config) -> Problems:
    data = config.data
    if not isinstance(data, ImageFolder) or data.test_fraction is None or data.root is None:
        return
    if os.path.isdir(data.root) and (test := folder_layout(Path(data.root)).test):
        fraction = f"data.test_fraction={data.test_fraction:g}"
        yield f"{fraction}: {test} is the test set; leave the key out"


@rule("data.name", "data.test_fraction")
def _check_torchvision_test_fraction(config: Config) -> Problems:
    data = config.data
    if not isinstance(data, Torchvision) or data.test_fraction is None:
        return
    if TORCHVISION_SETS[data.name].test is not None:
        fraction = f"data.test_fraction={data.test_fraction:g}"
        yield f"{fraction}: {data.name} has a test part of its own; leave the key out"


@rule("data.name")
def _check_torchvision_arguments(config: Config) -> Problems:
    if isinstance(config.data, Torchvision):
        yield from torchvision_arguments.argument_problems(config.data.name, config.data.arguments)


@rule("train.init_sha256")
def _check_init_sha256(config: Config) -> Problems:
    digest = config.train.init_sha256
    if digest is not None and not SHA256.fullmatch(digest):
        yield f"train.init_sha256={digest}: must be 64 digits 0..9 a..f or null"


@rule("train.init_sha256", "train.init_from")
def _check_init_sha256_has_a_source(config: Config) -> Problems:
    digest = config.train.init_sha256
    if digest is not None and config.train.init_from is None:
        yield f"train.init_sha256={digest}: needs train.init_from, which names the weights"


@rule("train.freeze", "train.init_from")
def _check_freeze_has_a_source(config: Config) -> Problems:
    freeze = config.train.freeze
    if freeze is not None and config.train.init_from is None:
        yield f"train.freeze={freeze}: needs train.init_from, which names the weights"


@rule("train.freeze", "arch.blocks")
def _check_freeze(config: Config) -> Problems:
    freeze = config.train.freeze
    if freeze is None or _has_wrong_block_count(config.arch):
        return
    blocks = spatial_ops(config)[-1].block
    if freeze > blocks:
        yield f"train.freeze={freeze}: more than the network's {blocks} blocks"


@rule("run.name")
def _check_run_name(config: Config) -> Problems:
    name = config.run.name
    if name is None:
        return
    if not RUN_NAME.fullmatch(name) or WINDOWS_DEVICE.fullmatch(name):
        yield f"run.name={name}: must be 1..120 {NAME_CHARACTERS}, no device name of Windows"
    if name in ("sweeps", "report.html", "report.csv", "report.md"):
        yield f"run.name={name}: sweeps and reports stand there in run.root; choose another"
    if name in (*RUN_FILES, *SWEEP_FILES):
        yield f"run.name={name}: run.root would look like the folder of a run or a sweep"


@rule("run.network", "run.label")
def _check_labels(config: Config) -> Problems:
    limits = {"network": MAX_NETWORK_CHARS, "label": MAX_LABEL_CHARS}
    for key, max_chars in limits.items():
        text = getattr(config.run, key)
        if text is not None and (not RUN_NAME.fullmatch(text) or len(text) > max_chars):
            yield f"run.{key}={text}: must be 1..{max_chars} {NAME_CHARACTERS}"


@rule("run.root")
def _check_run_root(config: Config) -> Problems:
    root = config.run.root
    if os.path.exists(root) and not os.path.isdir(root):
        yield f"run.root={root}: not a directory"
    for folder in (Path(root), *Path(root).parents):
        if all(os.path.exists(folder / name) for name in RUN_FILES):
            yield f"run.root={root}: {folder} is the folder of a run; choose one beside it"


@rule("run.until", "train.epochs")
def _check_until(config: Config) -> Problems:
    until = config.run.until
    epochs = config.train.epochs
    if until is not None and until > epochs:
        yield f"run.until={until}: the run has train.epochs={epochs}; at most {epochs}"


@rule("sweep.objective")
def _check_objective(config: Config) -> Problems:
    objective = config.sweep.objective
    if objective not in OBJECTIVES:
        yield f"sweep.objective={objective}: allowed {', '.join(OBJECTIVES)}"


@rule("optimizer.name")
def _check_optimizer(config: Config) -> Problems:
    if problem := torch_optim.name_problem(config.optimizer.name):
        yield problem


@rule("optimizer.name", "optimizer.weight_decay")
def _check_weight_decay(config: Config) -> Problems:
    optimizer = config.optimizer
    if not optimizer.weight_decay or not torch_optim.is_usable(optimizer.name):
        return
    if "weight_decay" not in torch_optim.arguments(optimizer.name):
        weight_decay = f"optimizer.weight_decay={optimizer.weight_decay:g}"
        yield f"{weight_decay}: {optimizer.name} has none; set it to 0"


@rule("optimizer.name", "optimizer.arguments")
def _check_optimizer_arguments(config: Config) -> Problems:
    optimizer = config.optimizer
    if torch_optim.is_usable(optimizer.name):
        yield from torch_optim.argument_problems(optimizer.name, optimizer.arguments)
