"""Advice on a valid configuration before it costs time. Arithmetic only, no torch."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from vggexp.config.derived import (
    flip_only_from,
    input_spec,
    layers,
    memory_bytes,
    spatial_ops,
    stored_size,
)
from vggexp.config.schema import Arch, Config, ImageFiles, Optimizer, Vgg
from vggexp.formatting import format_value, plural
from vggexp.models import shapes
from vggexp.system.cpu import available_bytes

MAX_UPSCALE = 2  # times the sufficient size; a larger resize is mostly cost
# Times the usual learning rate, from which a VGG without batch norm seldom learns.
LR_WARN_FACTOR = 8
# Times the usual learning rate, up to which clipping made networks learn (benchmarks/dead.md).
MAX_CLIPPED_LR_FACTOR = 10
DECAY_WARN = 0.01  # weight decay above which decay counts as the reason of a dead network
ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop")


@dataclass(frozen=True)
class Hint:
    """Advice with its source."""

    key: str
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.text} ({self.source})"


def hints(
    config: Config,
    gpu_bytes: int | None = None,
    host_bytes: int | None = None,
) -> list[Hint]:
    """Returns the hints for a configuration.

    Args:
        gpu_bytes: memory of the CUDA device; None if unknown.
        host_bytes: memory of this machine that the process may hold; None: measured.
    """
    available = gpu_bytes
    if config.device.name != "cuda":
        available = available_bytes() if host_bytes is None else host_bytes
    return [
        *_learning_rate_hints(config),
        *_resize_hints(config),
        *_dense_hints(config),
        *_flip_only_hints(config),
        *_memory_hints(config, available),
    ]


def usual_lr(optimizer: Optimizer) -> float | None:
    """Returns the learning rate in the optimizer's source, or None if no source is known.

    torchvision's recipe trains VGG by SGD with momentum 0.9 at 0.01; without momentum, ten times
    that rate is equivalent. Kingma and Ba 2015 (arXiv:1412.6980), section 2: 0.001.
    """
    if optimizer.name == "SGD":
        momentum = optimizer.arguments.get("momentum", 0)
        return round(0.1 * (1 - momentum), 6) or None
    return 0.001 if optimizer.name in ADAPTIVE else None


def _learning_rate_hints(config: Config) -> Iterator[Hint]:
    usual = usual_lr(config.optimizer)
    lr = config.optimizer.lr
    if not isinstance(config.arch, Vgg) or config.arch.norm == "batch":
        return
    if usual is None or lr < LR_WARN_FACTOR * usual:
        return
    source = "torchvision's VGG recipe" if config.optimizer.name == "SGD" else "arXiv:1412.6980"
    text = f"optimizer.lr={lr:g} without batch norm: {usual:g} is usual"
    yield Hint("optimizer.lr", text, source)


def _resize_hints(config: Config) -> Iterator[Hint]:
    data = config.data
    if isinstance(data, ImageFiles):
        return
    stored = stored_size(data)
    sufficient = max(stored, shapes.minimum_size(spatial_ops(config)))
    size = input_spec(config).size
    if size <= MAX_UPSCALE * sufficient:
        return
    smaller = replace(config, data=replace(data, resize=sufficient))
    share = shapes.macs(layers(smaller)) / shapes.macs(layers(config))
    cost = f"{sufficient} takes {share:.2g} of the multiply-adds"
    text = f"data.resize={size}: images of {stored} px hold no more; {cost}"
    yield Hint("data.resize", text, "arithmetic")


def _dense_hints(config: Config) -> Iterator[Hint]:
    ops = spatial_ops(config)
    size = input_spec(config).size
    if not isinstance(config.arch, Vgg) or shapes.feature_map_sizes(size, ops)[-1] != 1:
        return
    larger = 2 * shapes.minimum_size(ops)
    reason = f"dense evaluation is the plain one below {larger} px"
    text = f"a map of 1x1 before the classifier: {reason}"
    yield Hint("dense", text, "arXiv:1409.1556, section 3.2")


def _flip_only_hints(config: Config) -> Iterator[Hint]:
    fraction = config.augment.flip_only_fraction
    if fraction is None or flip_only_from(config) is not None:
        return
    epochs = plural(config.train.epochs, "epoch")
    value = format_value(fraction)
    text = f"augment.flip_only_fraction={value} of {epochs}: rounded to no epoch"
    yield Hint("augment.flip_only_fraction", text, "docs/keys.md")


def _memory_hints(
    config: Config,
    available: int | None,
) -> Iterator[Hint]:
    needed = _needed_bytes(config)
    if available is None or needed <= available:
        return
    advice = "choose a smaller network"
    for override, smaller in _smaller_steps(config):
        if _needed_bytes(smaller) <= available:
            advice = override
            break
    gigabytes = f"{needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free"
    yield Hint("memory", f"training takes {gigabytes}; {advice}", "estimate of vggexp.plan")


def _needed_bytes(config: Config) -> int:
    """Returns the memory of a device: each rank has a GPU of its own, but shares the RAM."""
    ranks = 1 if config.device.name == "cuda" else config.device.processes or 1
    return ranks * (memory_bytes(config)["total"] or 0)


def _smaller_steps(config: Config) -> Iterator[tuple[str, Config]]:
    """Yields overrides that hold half of the images at a time, a quarter, ...; and their results.

    Batch norm computes its statistics over a micro-batch, so there the batch shrinks instead.
    """
    batch_size = config.data.batch_size
    parts = config.train.accumulate
    while 2 * parts <= batch_size:
        parts *= 2
        if _has_batch_norm(config.arch):
            size = batch_size * config.train.accumulate // parts
            data = replace(config.data, batch_size=size)
            yield f"data.batch_size={size}", replace(config, data=data)
        else:
            train = replace(config.train, accumulate=parts)
            yield f"train.accumulate={parts}", replace(config, train=train)


def _has_batch_norm(arch: Arch) -> bool:
    return isinstance(arch, Vgg) and arch.norm == "batch"


def suggested_overrides(config: Config) -> list[str]:
    """Returns overrides, each of which should make a dead network learn.

    The overrides were tried in benchmarks/dead.py. A smaller learning rate and a smaller weight
    decay come first if the current ones are too large: nothing else helps without them.
    """
    optimizer = config.optimizer
    arch = config.arch
    usual = usual_lr(optimizer)
    required = _decay_overrides(optimizer)
    if usual is not None and optimizer.lr > usual:
        required.append(f"optimizer.lr={usual:g}")
    suggestions = []
    keeps_the_signal = arch.init == "kaiming" or (arch.init == "dirac" and _has_batch_norm(arch))
    if required and keeps_the_signal:
        suggestions.append(" ".join(required))
    if isinstance(arch, Vgg) and not _has_batch_norm(arch):
        suggestions.append(" ".join([*required, "arch.norm=batch"]))
    if not keeps_the_signal:
        suggestions.append(" ".join([*required, "arch.init=kaiming"]))
    return suggestions or [f"optimizer.lr={optimizer.lr / 10:g}"]


def _decay_overrides(optimizer: Optimizer) -> list[str]:
    return ["optimizer.weight_decay=5e-4"] if optimizer.weight_decay > DECAY_WARN else []


def smaller_steps(config: Config) -> list[str]:
    """Returns overrides, each of which should make a network learn whose steps are too large.

    The overrides were tried in benchmarks/dead.md. The learning rate is 0.3 times the current one,
    or 0.3 times the usual one if that is smaller. A smaller weight decay comes first if the current
    one is too large.
    """
    optimizer = config.optimizer
    usual = usual_lr(optimizer) or math.inf
    lr = 0.3 * min(optimizer.lr, usual)
    suggestions = [f"optimizer.lr={float(f'{lr:.2g}'):g}"]
    clip_norm = config.train.clip_norm
    # The steps of Adam and its kin do not depend on the norm of the gradient. A higher rate is too
    # large for clipped gradients too.
    clips = clip_norm is not None and clip_norm <= 1
    is_tried = _has_batch_norm(config.arch) and optimizer.lr <= MAX_CLIPPED_LR_FACTOR * usual
    if optimizer.name == "SGD" and is_tried and not clips:
        suggestions.append("train.clip_norm=1")
    required = _decay_overrides(optimizer)
    return [" ".join([*required, suggestion]) for suggestion in suggestions]
