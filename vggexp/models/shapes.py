"""Shapes, parameters, multiply-adds and activations of every network, by arithmetic alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from math import prod
from typing import NamedTuple

Shape = tuple[int, int, int]  # channels, height, width


class Block(NamedTuple):
    """`convs` convolutions of `channels` each, the last `pointwise` 1x1, then 2x2 max-pooling."""

    convs: int
    channels: int
    pointwise: int = 0


@dataclass(frozen=True)
class Layer:
    """One row of a network's table. ReLU, dropout and flatten have no row: they change no shape."""

    name: str  # block1.conv1, block1.norm1, block1.pool, hidden1, output
    block: int | None  # from 1; None in the classifier
    kind: str  # conv, batch, lrn, pool, linear
    kernel: int  # height and width; 1 for linear, batch and lrn
    in_channels: int
    out_channels: int
    output: Shape
    parameters: int
    macs: int  # multiply-adds per image, biases not counted
    activations: int  # elements per image that training keeps for backward because of this layer


class SpatialOp(NamedTuple):
    """A sliding window: a convolution to `channels`, or a max-pooling (channels None)."""

    block: int
    channels: int | None
    kernel: int
    stride: int = 1
    padding: int = 0

    def output_size(self, size: int) -> int:
        """Returns the size of the output, 0 if the window does not fit into the input."""
        return max(0, (size + 2 * self.padding - self.kernel) // self.stride + 1)


# LeCun et al. 1998, with the full C3 connection table, ReLU and max-pooling in place of scaled tanh
# and trainable subsampling, and softmax in place of radial basis functions.
LENET = (
    SpatialOp(1, 6, 5, 1, 2),
    SpatialOp(1, None, 2, 2),
    SpatialOp(2, 16, 5),
    SpatialOp(2, None, 2, 2),
)
LENET_HIDDEN = (120, 84)

# Krizhevsky 2014 (arXiv:1404.5997), the one-tower form of the network of 2012, without its response
# normalization.
ALEXNET = (
    SpatialOp(1, 64, 11, 4, 2),
    SpatialOp(1, None, 3, 2),
    SpatialOp(2, 192, 5, 1, 2),
    SpatialOp(2, None, 3, 2),
    SpatialOp(3, 384, 3, 1, 1),
    SpatialOp(3, 256, 3, 1, 1),
    SpatialOp(3, 256, 3, 1, 1),
    SpatialOp(3, None, 3, 2),
)
ALEXNET_HIDDEN = (4096, 4096)


def widen(blocks: Iterable[Block], width: float) -> tuple[Block, ...]:
    """Multiplies the channels of each block by `width`, rounded, at least 1."""
    return tuple(block._replace(channels=max(1, round(block.channels * width))) for block in blocks)


def vgg_spatial_ops(blocks: Iterable[Block]) -> tuple[SpatialOp, ...]:
    ops = []
    for number, block in enumerate(blocks, 1):
        for index in range(block.convs):
            kernel = 1 if index >= block.convs - block.pointwise else 3
            ops.append(SpatialOp(number, block.channels, kernel, 1, kernel // 2))
        ops.append(SpatialOp(number, None, 2, 2))
    return tuple(ops)


def vgg_layers(
    blocks: Iterable[Block],
    norm: str,
    hidden: Sequence[int],
    width: float,
    *,
    in_channels: int,
    size: int,
    classes: int,
) -> list[Layer]:
    """Returns the table of a VGG.

    Args:
        norm: "none", "batch" (after every convolution) or "lrn" (once, after the first ReLU).

    Raises:
        ValueError: The image is too small.
    """
    return _layers(vgg_spatial_ops(widen(blocks, width)), norm, hidden, in_channels, size, classes)


def lenet_layers(*, in_channels: int, size: int, classes: int) -> list[Layer]:
    return _layers(LENET, "none", LENET_HIDDEN, in_channels, size, classes)


def alexnet_layers(*, in_channels: int, size: int, classes: int) -> list[Layer]:
    return _layers(ALEXNET, "none", ALEXNET_HIDDEN, in_channels, size, classes)


def minimum_size(ops: Sequence[SpatialOp], map_size: int = 1) -> int:
    """Returns the smallest image size that leaves a map of `map_size` after all windows."""
    size = map_size
    for op in reversed(ops):
        size = max(1, (size - 1) * op.stride + op.kernel - 2 * op.padding)
    return size


def feature_map_sizes(size: int, ops: Iterable[SpatialOp]) -> list[int]:
    """Returns the size before and after each window; 0 from the first window that does not fit."""
    sizes = [size]
    for op in ops:
        size = op.output_size(size) if size else 0
        sizes.append(size)
    return sizes


def format_sizes(size: int, ops: Iterable[SpatialOp]) -> str:
    """Returns for instance '16->8->4->2->1->0': only the changes of the size, up to the first 0."""
    sizes = [size]
    for before, after in pairwise(feature_map_sizes(size, ops)):
        if after != before:
            sizes.append(after)
    return "->".join(map(str, sizes))


def size_problem(size: int, ops: Sequence[SpatialOp]) -> str | None:
    """Describes what is wrong with an image of this size, or returns None."""
    minimum = minimum_size(ops)
    if size >= minimum:
        return None
    poolings = sum(op.channels is None for op in ops)
    return f"too small for {poolings} poolings ({format_sizes(size, ops)}); at least {minimum}"


def _layers(
    ops: Sequence[SpatialOp],
    norm: str,
    hidden: Sequence[int],
    in_channels: int,
    size: int,
    classes: int,
) -> list[Layer]:
    problem = size_problem(size, ops)
    if problem is not None:
        raise ValueError(f"{size} pixels: {problem}")
    features = list(_without_pooled_inputs(_features(ops, norm, in_channels, size)))
    return features + list(_classifier(prod(features[-1].output), hidden, classes))


def _features(ops: Iterable[SpatialOp], norm: str, in_channels: int, size: int) -> Iterator[Layer]:
    image = in_channels * size * size
    for block, block_ops in groupby(ops, lambda op: op.block):
        for index, op in enumerate(block_ops, 1):
            size = op.output_size(size)
            if op.channels is None:
                yield _pool(op, (in_channels, size, size))
                continue
            output = (op.channels, size, size)
            is_first = block == 1 and index == 1
            yield _conv(op, index, in_channels, output, image if is_first else 0)
            if norm == "batch" or (norm == "lrn" and is_first):
                yield _norm(norm, block, index, output)
            in_channels = op.channels


# What autograd keeps. Each tensor counts once, at the layer that makes it (the image at the first
# convolution). ReLU works in place and the pooling stands before the ReLU. A convolution therefore
# leaves one tensor: the result of its ReLU, which the next convolution reads, or the input of its
# normalization. Tests compare these numbers with autograd's own saved tensors.


def _without_pooled_inputs(layers: Iterable[Layer]) -> Iterator[Layer]:
    """Leaves out the inputs of poolings, which vggexp.models.layers.MaxPool2d does not keep."""
    for layer, following in pairwise([*layers, None]):
        assert layer is not None
        if following is not None and following.kind == "pool":
            layer = replace(layer, activations=layer.activations - prod(layer.output))
        yield layer


def _conv(op: SpatialOp, index: int, in_channels: int, output: Shape, image: int) -> Layer:
    channels, height, width = output
    weights = op.kernel**2 * in_channels * channels
    return Layer(
        name=f"block{op.block}.conv{index}",
        block=op.block,
        kind="conv",
        kernel=op.kernel,
        in_channels=in_channels,
        out_channels=channels,
        output=output,
        parameters=weights + channels,
        macs=weights * height * width,
        activations=prod(output) + image,
    )


def _pool(op: SpatialOp, output: Shape) -> Layer:
    return Layer(
        name=f"block{op.block}.pool",
        block=op.block,
        kind="pool",
        kernel=op.kernel,
        in_channels=output[0],
        out_channels=output[0],
        output=output,
        parameters=0,
        macs=0,
        activations=prod(output),
    )


def _norm(kind: str, block: int, index: int, output: Shape) -> Layer:
    """Batch norm keeps mean and variance too. Response norm keeps four tensors, one padded by 4."""
    channels, height, width = output
    parameters = 2 * channels
    activations = prod(output) + 2 * channels
    if kind == "lrn":
        parameters = 0
        activations = 4 * (channels + 1) * height * width
    return Layer(
        name=f"block{block}.norm{index}",
        block=block,
        kind=kind,
        kernel=1,
        in_channels=channels,
        out_channels=channels,
        output=output,
        parameters=parameters,
        macs=0,
        activations=activations,
    )


def _classifier(features: int, hidden: Sequence[int], classes: int) -> Iterator[Layer]:
    for number, width in enumerate(hidden, 1):
        # The result of the ReLU, and the mask and the result of the dropout.
        yield _linear(f"hidden{number}", features, width, 3 * width)
        features = width
    yield _linear("output", features, classes, classes)  # the log-softmax


def _linear(name: str, features: int, width: int, activations: int) -> Layer:
    return Layer(
        name=name,
        block=None,
        kind="linear",
        kernel=1,
        in_channels=features,
        out_channels=width,
        output=(width, 1, 1),
        parameters=(features + 1) * width,
        macs=features * width,
        activations=activations,
    )


def parameters(layers: Iterable[Layer]) -> int:
    return sum(layer.parameters for layer in layers)


def macs(layers: Iterable[Layer]) -> int:
    """Returns the multiply-adds of one image's forward pass."""
    return sum(layer.macs for layer in layers)


def weight_layers(layers: Iterable[Layer]) -> int:
    """Returns the number of convolutions and linear layers: 16 for VGG-16."""
    return sum(layer.kind in ("conv", "linear") for layer in layers)
