"""Memory of a training step and disk space of a checkpoint, by arithmetic, without torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import NamedTuple

from vggexp.models.shapes import Layer, parameters

Layers = Sequence[Layer]

FLOAT_BYTES = 4
INDEX_BYTES = 8  # of torch's pooling
FUSED_INDEX_BYTES = 1  # of the kernels of vggexp.models.triton_ops
# What a process on a CPU holds besides tensors, measured on Linux with torch 2.14, as
# tests/test_plan.py does. LIBRARY_BYTES is Python with all libraries: 605 MB on one machine, 860 MB
# on another with the same packages. WORKER_BYTES is what a worker does not share.
LIBRARY_BYTES = 640_000_000
WORKER_BYTES = 60_000_000
# Scratch memory of convolutions, and holes in the heap, relative to the tensors of a step.
# In 14 runs the share was 0 to 0.32.
WORKSPACE_SHARE = 0.3
BATCH_COPIES = 3  # of a batch in fp32, while it is resized and normalized
KEEP_NEWEST = 2  # checkpoints that are kept besides the best one
# Largest number of bytes of a checkpoint file besides the values of its tensors.
FILE_BYTES = 16 << 10  # facts about the run, and counters
TENSOR_BYTES = 512  # name, shape, and entry of the archive
EPOCH_BYTES = 1 << 10  # metrics of an epoch
CLASS_BYTES = 1 << 10  # the name of a class is up to 255 bytes, which may be escaped
STATISTICS = 2  # of batch norm for each channel: mean and variance


class MemoryAtLayer(NamedTuple):
    """Bytes that are allocated while the backward pass is at one layer."""

    copies: int  # of the weights in autocast's format, freed layer by layer
    gradients: int  # of the layers so far, and what becomes of this layer's gradient
    activations: int  # of one image

    def total(self, batch_size: int) -> int:
        return self.copies + self.gradients + batch_size * self.activations


class LayerMemory(NamedTuple):
    """Bytes that one layer adds for one image."""

    saved: int  # until the backward pass has reached the layer
    transient: int  # only while the backward pass is at the layer


def memory_bytes(
    layers: Layers,
    *,
    batch_size: int,
    precision_bytes: int,
    optimizer_states: int | None,
    ema: bool,
    accumulated: bool = False,
    fused: bool = False,
    frozen: int = 0,
) -> dict[str, int | None]:
    """Returns the memory of a training step at its peak, by purpose and in total.

    Only tensors count, without the workspaces of libraries and without the data. The measured error
    is in benchmarks/memory.md and benchmarks/gpu.md.

    Args:
        batch_size: Images of a micro-batch.
        precision_bytes: 2 under 16-bit autocast, otherwise 4.
        optimizer_states: fp32 copies of the parameters that the optimizer keeps. None means
            unknown; the total then leaves the optimizer out.
        accumulated: Whether the micro-batch adds to the gradients of other micro-batches.
        fused: Whether the kernels of vggexp.models.triton_ops are used.
        frozen: Number of first blocks without gradients. The total is then an upper bound.
    """
    trainable = []
    for layer in layers:
        is_frozen = layer.block is not None and layer.block <= frozen
        trainable.append(0 if is_frozen else layer.parameters)
    moments = list(
        map(
            MemoryAtLayer,
            _copies(layers, precision_bytes, fused),
            _gradients(trainable, precision_bytes, accumulated, fused),
            _activations(layers, precision_bytes, fused, frozen),
        )
    )
    moments.append(MemoryAtLayer(0, FLOAT_BYTES * sum(trainable), 0))  # the optimizer's update
    peak = max(moments, key=lambda moment: moment.total(batch_size))
    weights = FLOAT_BYTES * parameters(layers)
    memory: dict[str, int | None] = {
        "parameters": weights + peak.copies,
        "gradients": peak.gradients,
        "optimizer": None,
        "ema": weights if ema else 0,
        "activations": batch_size * peak.activations,
    }
    if optimizer_states is not None:
        memory["optimizer"] = optimizer_states * sum(trainable) * FLOAT_BYTES
    memory["total"] = sum(size or 0 for size in memory.values())
    return memory


# On a GPU the fused step is recorded as one graph, which keeps its copies and gradients. With this
# rule the plan was 1 to 9 % above what was measured (benchmarks/gpu.md).


def _copies(layers: Layers, precision_bytes: int, fused: bool) -> Iterator[int]:
    """Yields the bytes of the copies of the layers before each layer.

    A layer's own copy is no longer needed when its gradient becomes fp32.
    """
    size = precision_bytes if precision_bytes < FLOAT_BYTES else 0
    total = parameters(layers)
    for earlier in accumulate((layer.parameters for layer in layers[:-1]), initial=0):
        yield size * (total if fused else earlier)


def _gradients(
    trainable: Sequence[int], precision_bytes: int, accumulated: bool, fused: bool
) -> Iterator[int]:
    """Yields the bytes of the gradients that exist at each layer.

    These are the gradients of the layers from this one on, or of all layers if they accumulate. In
    both cases the layer's own gradient exists once more while it is made.

    Args:
        trainable: Parameters of each layer that have a gradient.
    """
    size = precision_bytes if precision_bytes < FLOAT_BYTES else 0
    total = sum(trainable)
    for earlier, own in zip(accumulate(trainable[:-1], initial=0), trainable, strict=True):
        existing = total + own if accumulated else total - earlier
        if fused:
            yield FLOAT_BYTES * total
        else:
            yield FLOAT_BYTES * existing + size * own


def _activations(layers: Layers, precision_bytes: int, fused: bool, frozen: int) -> Iterator[int]:
    """Yields the bytes of one image at each layer: saved so far, and the gradients at the layer."""
    image = _image_elements(layers) if frozen else 0  # otherwise part of the first convolution
    saved = image * precision_bytes
    inputs = 0  # elements of the gradient that the layer passes on; the images need none
    previous = None
    for layer, following in pairwise([*layers, None]):
        assert layer is not None
        if layer.block is not None and layer.block <= frozen:
            memory = _frozen_memory(layer, precision_bytes, fused)
            yield saved + memory.transient
            saved = memory.saved + image * _element_bytes(layer, precision_bytes)
            continue
        following_kind = None if following is None else following.kind
        memory = _layer_memory(layer, previous, following_kind, inputs, precision_bytes, fused)
        inputs = prod(layer.output)
        if fused and layer is layers[0] and following_kind == "pool":
            # The kernel of the first convolution pools too: only the pooled result ever exists.
            memory = memory._replace(transient=0)
            inputs = 0
        saved += memory.saved
        yield saved + memory.transient
        previous = layer


def _image_elements(layers: Layers) -> int:
    """Returns the elements of the image, which are among the first convolution's activations."""
    first, second = layers[:2]
    if second.kind == "pool":
        return first.activations
    return first.activations - prod(first.output)


def _layer_memory(
    layer: Layer,
    previous: Layer | None,
    following_kind: str | None,
    inputs: int,
    precision_bytes: int,
    fused: bool,
) -> LayerMemory:
    if layer.kind == "pool":
        is_fused = fused and previous is not None and previous.kind != "lrn"
        return _pool_memory(layer, inputs, precision_bytes, is_fused)
    if layer.kind == "lrn":
        return _lrn_memory(layer, inputs)
    return _weighted_memory(layer, following_kind, inputs, precision_bytes, fused)


def _element_bytes(layer: Layer, precision_bytes: int) -> int:
    """Returns the bytes of one element. Autocast computes response normalization in fp32."""
    return FLOAT_BYTES if layer.kind == "lrn" else precision_bytes


def _weighted_memory(
    layer: Layer, following_kind: str | None, inputs: int, precision_bytes: int, fused: bool
) -> LayerMemory:
    """Memory of a layer with weights. A fused ReLU between convolutions saves a byte per output."""
    outputs = prod(layer.output)
    saved = layer.activations * precision_bytes
    if fused and following_kind == "conv":
        saved += outputs * FUSED_INDEX_BYTES
    return LayerMemory(saved, (inputs + outputs) * precision_bytes)


def _pool_memory(layer: Layer, inputs: int, precision_bytes: int, fused: bool) -> LayerMemory:
    """Memory of a pooling, which saves an index per output; a fused pooling saves no input."""
    outputs = prod(layer.output)
    index_bytes = FUSED_INDEX_BYTES if fused else INDEX_BYTES
    saved = layer.activations * precision_bytes + outputs * index_bytes
    return LayerMemory(saved, (inputs + outputs) * precision_bytes)


def _lrn_memory(layer: Layer, inputs: int) -> LayerMemory:
    """Memory of response normalization: fp32, in steps of which three have gradients too."""
    outputs = prod(layer.output)
    return LayerMemory(layer.activations * FLOAT_BYTES, (inputs + 4 * outputs) * FLOAT_BYTES)


def _frozen_memory(layer: Layer, precision_bytes: int, fused: bool) -> LayerMemory:
    """Memory of a frozen layer: besides the image, only the output of the last such layer stays."""
    outputs = prod(layer.output)
    element_bytes = _element_bytes(layer, precision_bytes)
    temporary_bytes = 0
    if layer.kind == "pool":
        temporary_bytes = FUSED_INDEX_BYTES if fused else INDEX_BYTES
    elif layer.kind == "lrn":
        temporary_bytes = 2 * FLOAT_BYTES
    return LayerMemory(outputs * element_bytes, outputs * (element_bytes + temporary_bytes))


def disk_bytes(
    layers: Iterable[Layer],
    *,
    optimizer_states: int | None,
    ema: bool,
    classes: int = 0,
    epochs: int = 0,
) -> dict[str, int]:
    """Returns the most bytes of a `checkpoint` (weights, optimizer, average) and of `weights`."""
    rows = list(layers)
    weights = parameters(rows) * FLOAT_BYTES
    weight_tensors = 2 * sum(layer.parameters > 0 for layer in rows)
    norms = [layer for layer in rows if layer.kind == "batch"]
    buffers = sum(STATISTICS * layer.out_channels * FLOAT_BYTES for layer in norms)
    buffer_tensors = (STATISTICS + 1) * len(norms)  # and the number of batches
    models = 2 if ema else 1
    states = optimizer_states or 0
    step_counts = 1 if states else 0
    tensors = models * (weight_tensors + buffer_tensors) + (states + step_counts) * weight_tensors
    facts = FILE_BYTES + CLASS_BYTES * classes + EPOCH_BYTES * epochs
    return {
        "checkpoint": models * (weights + buffers)
        + states * weights
        + TENSOR_BYTES * tensors
        + facts,
        "weights": weights + buffers + TENSOR_BYTES * (weight_tensors + buffer_tensors) + facts,
    }


# Copies of the parameters that torch.optim's classes keep, and the arguments that add one copy.
OPTIMIZER_STATES: dict[str, tuple[int, tuple[str, ...]]] = {
    "SGD": (0, ("momentum",)),
    "RMSprop": (1, ("momentum", "centered")),
    "Adam": (2, ("amsgrad",)),
    "AdamW": (2, ("amsgrad",)),
    "Adamax": (2, ()),
    "NAdam": (2, ()),
    "RAdam": (2, ()),
    "Adadelta": (2, ()),
    "Rprop": (2, ()),
    "Adagrad": (1, ()),
    "ASGD": (1, ()),
}


def optimizer_states(name: str, arguments: Mapping[str, object]) -> int | None:
    """Returns the copies of the parameters that an optimizer keeps, or None if unknown."""
    if name not in OPTIMIZER_STATES:
        return None
    copies, options = OPTIMIZER_STATES[name]
    return copies + sum(bool(arguments.get(option)) for option in options)
