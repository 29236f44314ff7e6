"""Advice on a checked configuration, told before it costs anything; each with its source. Arithmetic only, no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vggexp.config.derived import input_spec, layers, memory_bytes, spatial_ops
from vggexp.config.schema import Config, ImageFolder, Optimizer, Synthetic, Vgg
from vggexp.data.catalog import DATASETS
from vggexp.models import shapes
from vggexp.system.cpu import ram_bytes

MAX_UPSCALE = 2  # times the side that would do, from which on a resize is mostly cost
LR_WARN_FACTOR = (
    8  # times the usual learning rate from which on VGG without batch norm seldom learns
)
ADAPTIVE = ("Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop")
DECAY_WARN = 0.01  # weight decay above which it counts as the reason of a net that fades


@dataclass(frozen=True)
class Hint:
    key: str
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.text} ({self.source})"


def hints(config: Config, gpu_bytes: int | None = None) -> list[Hint]:
    """gpu_bytes: memory of the CUDA device, where it is known."""
    return [hint for look in (_rate, _resize, _dense) for hint in look(config)] + [
        *_memory(config, gpu_bytes)
    ]


def usual_lr(optimizer: Optimizer) -> float | None:
    """The rate that the optimizer's source trains with; None for one of which we know none.

    torchvision's recipe trains VGG by SGD with momentum 0.9 at 0.01; without momentum ten times that is the same.
    Kingma and Ba 2015 (arXiv:1412.6980), section 2: 0.001.
    """
    if optimizer.name == "SGD":
        return round(0.1 * (1 - optimizer.arguments.get("momentum", 0)), 6) or None
    return 0.001 if optimizer.name in ADAPTIVE else None


def _rate(config: Config) -> Iterator[Hint]:
    usual = usual_lr(config.optimizer)
    lr = config.optimizer.lr
    if (
        not isinstance(config.arch, Vgg)
        or config.arch.norm == "batch"
        or usual is None
        or lr < LR_WARN_FACTOR * usual
    ):
        return
    source = "torchvision's VGG recipe" if config.optimizer.name == "SGD" else "arXiv:1412.6980"
    yield Hint(
        "optimizer.lr", f"optimizer.lr={lr:g} without batch norm: {usual:g} is usual", source
    )


def _resize(config: Config) -> Iterator[Hint]:
    data = config.data
    if isinstance(data, ImageFolder):
        return
    stored = data.size if isinstance(data, Synthetic) else DATASETS[data.name].size
    enough = max(stored, shapes.minimum_size(spatial_ops(config)))
    side = input_spec(config).size
    if side <= MAX_UPSCALE * enough:
        return
    smaller = replace(config, data=replace(data, resize=enough))
    share = shapes.macs(layers(smaller)) / shapes.macs(layers(config))
    told = f"data.resize={side}: pictures of {stored} px hold no more; {enough} takes {share:.2g} of the multiply-adds"
    yield Hint("data.resize", told, "arithmetic")


def _dense(config: Config) -> Iterator[Hint]:
    given = input_spec(config)
    path = spatial_ops(config)
    if isinstance(config.arch, Vgg) and shapes.feature_map_sizes(given.size, path)[-1] == 1:
        larger = 2 * shapes.minimum_size(path)
        told = f"a map of 1x1 before the classifier: dense evaluation is the plain one below {larger} px"
        yield Hint("dense", told, "arXiv:1409.1556, section 3.2")


def _memory(config: Config, gpu_bytes: int | None) -> Iterator[Hint]:
    room = gpu_bytes if config.device.name == "cuda" else ram_bytes()
    needed = memory_bytes(config)["total"] or 0
    if room is None or needed <= room:
        return
    cure = next(
        (cure for cure, less in _smaller(config) if (memory_bytes(less)["total"] or 0) <= room),
        None,
    )
    told = f"a step holds {needed / 1e9:.1f} GB, there are {room / 1e9:.1f} GB; {cure or 'choose a smaller network'}"
    yield Hint("memory", told, "arithmetic")


def _smaller(config: Config) -> Iterator[tuple[str, Config]]:
    """Half of the images at a time, a quarter, ...; batch norm sees what a micro-batch holds, so there a batch."""
    batch = config.data.batch_size
    parts = config.train.accumulate
    while 2 * parts <= batch:
        parts *= 2
        if isinstance(config.arch, Vgg) and config.arch.norm == "batch":
            size = batch * config.train.accumulate // parts
            yield (
                f"data.batch_size={size}",
                replace(config, data=replace(config.data, batch_size=size)),
            )
        else:
            yield (
                f"train.accumulate={parts}",
                replace(config, train=replace(config.train, accumulate=parts)),
            )


def suggested_overrides(config: Config) -> list[str]:
    """For a net that turned out dead: overrides of which each should make it learn; they were tried in benchmarks/dead.py.

    Where a step or the decay is too large, that comes first: no other cure learns without it.
    """
    optimizer = config.optimizer
    arch = config.arch
    usual = usual_lr(optimizer)
    needed = ["optimizer.weight_decay=5e-4"] if optimizer.weight_decay > DECAY_WARN else []
    if usual is not None and optimizer.lr > usual:
        needed.append(f"optimizer.lr={usual:g}")
    others = ["arch.norm=batch"] if isinstance(arch, Vgg) and arch.norm != "batch" else []
    others += [] if arch.init == "kaiming" else ["arch.init=kaiming"]
    found = [needed] if needed and arch.init == "kaiming" else []
    found += [[*needed, other] for other in others]
    return [" ".join(words) for words in found] or [f"optimizer.lr={optimizer.lr / 10:g}"]
