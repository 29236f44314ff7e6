"""What a training step holds in memory and a checkpoint takes on the disk, by arithmetic, without torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple

from vggexp.models.shapes import Layer, parameters

FLOAT = 4
INDEX = 8  # bytes of an fp32 number and of a pooling's index


class MemoryAtLayer(NamedTuple):
    """Bytes while the backward pass is at one layer."""

    copies: int  # of the weights in autocast's format, freed layer by layer
    gradients: int  # those there are by then, and what becomes of this layer's
    activations: int  # of one image

    def held(self, batch_size: int) -> int:
        return self.copies + self.gradients + batch_size * self.activations


def memory_bytes(
    layers: Sequence[Layer],
    *,
    batch_size: int,
    precision_bytes: int,
    optimizer_states: int | None,
    ema: bool,
    accumulated: bool = False,
    fused: bool = False,
    frozen: int = 0,
) -> dict[str, int | None]:
    """What a training step holds at its fullest instant: tensors only, without the library's workspaces and the data.

    batch_size: of a micro-batch; accumulated: whether it adds to the gradients of others. frozen: the first blocks,
    which have no gradient; the total is then a bound. fused: by the kernels of vggexp.models.triton_ops.
    precision_bytes: 2 under 16-bit autocast, else 4. optimizer_states: fp32 copies of the parameters that the
    optimizer keeps; unknown is None, and is left out of the total. How far off: benchmarks/memory.md and gpu.md.
    """
    weights = parameters(layers) * FLOAT
    learnt = [layer.parameters * (layer.block is None or layer.block > frozen) for layer in layers]
    fullest = max(
        map(
            MemoryAtLayer._make,
            zip(
                _copies(layers, precision_bytes, fused),
                _gradients(learnt, precision_bytes, accumulated, fused),
                _activations(layers, precision_bytes, fused, frozen),
                strict=True,
            ),
        ),
        key=lambda instant: instant.held(batch_size),
    )
    update = MemoryAtLayer(0, FLOAT * sum(learnt), 0)
    fullest = max(fullest, update, key=lambda instant: instant.held(batch_size))
    held = {
        "parameters": weights + fullest.copies,
        "gradients": fullest.gradients,
        "optimizer": None if optimizer_states is None else optimizer_states * sum(learnt) * FLOAT,
        "ema": weights if ema else 0,
        "activations": batch_size * fullest.activations,
    }
    return {**held, "total": sum(size or 0 for size in held.values())}


# On a GPU the fused step is recorded as one graph, which keeps its copies and gradients: what the plan told so was 1 to
# 9 % above what was measured (benchmarks/gpu.md).


def _copies(layers: Sequence[Layer], precision_bytes: int, fused: bool) -> Iterator[int]:
    """Of the layers before each: its own is done with before its gradient becomes fp32."""
    size = precision_bytes if precision_bytes < FLOAT else 0
    for before in accumulate((layer.parameters for layer in layers[:-1]), initial=0):
        yield size * (parameters(layers) if fused else before)


def _gradients(
    learnt: Sequence[int], precision_bytes: int, accumulated: bool, fused: bool
) -> Iterator[int]:
    """Of the layers from each on, or of all where they add up, and once more its own, on the way there."""
    size = precision_bytes if precision_bytes < FLOAT else 0
    total = sum(learnt)
    for before, own in zip(accumulate(learnt[:-1], initial=0), learnt, strict=True):
        there = total + own if accumulated else total - before
        yield FLOAT * total if fused else FLOAT * there + size * own


def _activations(
    layers: Sequence[Layer], precision_bytes: int, fused: bool, frozen: int
) -> Iterator[int]:
    """Of an image: what the layers up to each keep, and the gradients around it.

    A fused bias, pooling and ReLU keeps a byte for each of its results, and not what it was given.
    """
    first, second = layers[:2]
    image = (
        first.activations - prod(first.output) * (second.kind != "pool") if frozen else 0
    )  # else its convolution's
    kept = image * precision_bytes
    before = 0
    tail = False  # the image needs no gradient
    for layer, following in pairwise([*layers, None]):
        assert layer is not None
        after = prod(layer.output)
        kind = following.kind if following is not None else None
        response = (
            layer.kind == "lrn"
        )  # computed in fp32 under autocast, by steps of which three have gradients too
        number = FLOAT if response else precision_bytes
        if (
            layer.block is not None and layer.block <= frozen
        ):  # passed through: only image and last result stay
            aside = {"pool": 1 if fused else INDEX, "lrn": 2 * FLOAT}.get(layer.kind, 0)
            yield kept + after * (number + aside)
            kept = (image + after) * number
            continue
        if layer.kind == "pool":
            kept += after * (1 if tail else INDEX)
        tail = fused and layer.kind in ("conv", "batch") and kind in ("conv", "pool")
        kept += layer.activations * number + after * (tail and kind != "pool")
        if tail and kind == "pool" and layer is layers[0]:
            yield kept  # its kernel multiplies too: only the pooled result is ever there
            continue
        yield kept + (before + after + 3 * after * response) * number
        before = after


def disk_bytes(
    layers: Iterable[Layer], *, optimizer_states: int | None, ema: bool
) -> dict[str, int]:
    """One checkpoint (parameters, optimizer, moving average) and the final weights alone, all fp32."""
    weights = parameters(layers) * FLOAT
    return {"checkpoint": weights * (1 + (optimizer_states or 0) + ema), "weights": weights}


# Copies of the parameters that torch.optim's classes keep, and the arguments that add one.
OPTIMIZER_STATES: dict[str, tuple[int, tuple[str, ...]]] = {
    "SGD": (0, ("momentum",)),
    "RMSprop": (1, ("momentum", "centered")),
    "Adam": (2, ("amsgrad",)),
    "AdamW": (2, ("amsgrad",)),
    **dict.fromkeys(("Adamax", "NAdam", "RAdam", "Adadelta", "Rprop"), (2, ())),
    **dict.fromkeys(("Adagrad", "ASGD"), (1, ())),
}


def optimizer_states(name: str, arguments: Mapping[str, object]) -> int | None:
    """Copies of the parameters that this optimizer keeps; None for one not in the table."""
    if name not in OPTIMIZER_STATES:
        return None
    copies, options = OPTIMIZER_STATES[name]
    return copies + sum(bool(arguments.get(option)) for option in options)


KEEP_NEWEST = 2  # checkpoints that are kept besides the best
