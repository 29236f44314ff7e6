"""Shapes, parameters, multiply-adds and activations of every network, by arithmetic alone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from math import prod
from typing import NamedTuple


class Block(NamedTuple):
    """`convs` convolutions of `channels` each, the last `pointwise` of them 1x1, then 2x2 max-pooling."""

    convs: int
    channels: int
    pointwise: int = 0


@dataclass(frozen=True)
class Layer:
    """One row of a network's table. ReLU, dropout and flatten have no row: they change no shape that counts."""

    name: str  # block1.conv1, block1.norm1, block1.pool, hidden1, output
    block: int | None  # from 1; None in the classifier
    kind: str  # conv, batch, lrn, pool, linear
    kernel: int  # side; 1 for linear, batch and lrn
    in_channels: int
    out_channels: int
    output: tuple[int, int, int]  # channels, height, width
    parameters: int
    macs: int  # multiply-adds an image, biases not counted
    activations: (
        int  # elements an image that training keeps for the backward pass because of this layer
    )


class SpatialOp(NamedTuple):
    """One sliding window: a convolution to `channels`, or a max-pooling (channels None)."""

    block: int
    channels: int | None
    kernel: int
    stride: int = 1
    padding: int = 0

    def slide(self, side: int) -> int:
        return max(0, (side + 2 * self.padding - self.kernel) // self.stride + 1)


# LeCun et al. 1998, with the full C3 connection table, ReLU and max-pooling in place of scaled tanh and trainable
# subsampling, and soft-max in place of radial basis functions.
LENET = (
    SpatialOp(1, 6, 5, 1, 2),
    SpatialOp(1, None, 2, 2),
    SpatialOp(2, 16, 5),
    SpatialOp(2, None, 2, 2),
)
LENET_HIDDEN = (120, 84)

# Krizhevsky 2014 (arXiv:1404.5997), the one-tower form of the network of 2012, without its response normalisation.
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
    windows = []
    for number, block in enumerate(blocks, 1):
        kernels = [3] * (block.convs - block.pointwise) + [1] * block.pointwise
        windows += [SpatialOp(number, block.channels, kernel, 1, kernel // 2) for kernel in kernels]
        windows.append(SpatialOp(number, None, 2, 2))
    return tuple(windows)


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
    """norm: none, batch (after every convolution) or lrn (once, after the first ReLU)."""
    return _layers(vgg_spatial_ops(widen(blocks, width)), norm, hidden, in_channels, size, classes)


def lenet_layers(*, in_channels: int, size: int, classes: int) -> list[Layer]:
    return _layers(LENET, "none", LENET_HIDDEN, in_channels, size, classes)


def alexnet_layers(*, in_channels: int, size: int, classes: int) -> list[Layer]:
    return _layers(ALEXNET, "none", ALEXNET_HIDDEN, in_channels, size, classes)


def lenet_map_size(size: int) -> int:
    return feature_map_sizes(size, LENET)[-1]


def alexnet_map_size(size: int) -> int:
    return feature_map_sizes(size, ALEXNET)[-1]


def minimum_size(windows: Sequence[SpatialOp], side: int = 1) -> int:
    """The least image of which a map of this side is left after the windows."""
    for window in reversed(windows):
        side = max(1, (side - 1) * window.stride + window.kernel - 2 * window.padding)
    return side


def feature_map_sizes(size: int, windows: Iterable[SpatialOp]) -> list[int]:
    """The side before and after each window; 0 from the first window that does not fit."""
    path = [size]
    for window in windows:
        path.append(window.slide(path[-1]) if path[-1] else 0)
    return path


def trace(size: int, windows: Iterable[SpatialOp]) -> str:
    """'16->8->4->2->1->0': only the windows that change the side, up to the first 0."""
    path = feature_map_sizes(size, windows)
    steps = [str(after) for before, after in pairwise(path) if after != before]
    return "->".join([str(size), *steps])


def too_small(size: int, windows: Sequence[SpatialOp]) -> str | None:
    """What is wrong with an image of this side, or None."""
    minimum = minimum_size(windows)
    if size >= minimum:
        return None
    poolings = sum(window.channels is None for window in windows)
    return f"too small for {poolings} poolings ({trace(size, windows)}); at least {minimum}"


def _layers(
    windows: Sequence[SpatialOp],
    norm: str,
    hidden: Sequence[int],
    in_channels: int,
    size: int,
    classes: int,
) -> list[Layer]:
    if problem := too_small(size, windows):
        raise ValueError(f"{size} pixels: {problem}")
    features = list(_pooled(_features(windows, norm, in_channels, size)))
    return features + list(_classifier(prod(features[-1].output), hidden, classes))


def _features(windows: Iterable[SpatialOp], norm: str, channels: int, side: int) -> Iterator[Layer]:
    image = channels * side * side
    for number, group in groupby(windows, lambda window: window.block):
        for index, window in enumerate(group, 1):
            side = window.slide(side)
            if window.channels is None:
                yield _pool(window, (channels, side, side))
                continue
            first = number == index == 1
            channels, output, source = window.channels, (window.channels, side, side), channels
            yield _conv(window, index, source, output, image if first else 0)
            if norm == "batch" or (norm == "lrn" and first):
                yield _norm(norm, number, index, output)


# What autograd keeps, each tensor counted once, at the layer that makes it (the image at the first convolution). ReLU
# works in place and the pooling stands before it, so a convolution leaves one tensor: its own ReLU's result, which the
# next convolution reads, or the input of its normalisation. Tested against autograd's own saved tensors.


def _pooled(layers: Iterable[Layer]) -> Iterator[Layer]:
    """What goes straight into a pooling is not kept: vggexp.models.layers."""
    for layer, following in pairwise([*layers, None]):
        assert layer is not None
        passed = following is not None and following.kind == "pool"
        yield replace(layer, activations=layer.activations - prod(layer.output) * passed)


def _conv(
    window: SpatialOp, index: int, source: int, output: tuple[int, int, int], image: int
) -> Layer:
    channels, height, width = output
    weights = window.kernel**2 * source * channels
    name = f"block{window.block}.conv{index}"
    macs = weights * height * width
    kept = prod(output) + image
    return Layer(
        name,
        window.block,
        "conv",
        window.kernel,
        source,
        channels,
        output,
        weights + channels,
        macs,
        kept,
    )


def _pool(window: SpatialOp, output: tuple[int, int, int]) -> Layer:
    name = f"block{window.block}.pool"
    channels = output[0]
    return Layer(
        name, window.block, "pool", window.kernel, channels, channels, output, 0, 0, prod(output)
    )


def _norm(kind: str, block: int, index: int, output: tuple[int, int, int]) -> Layer:
    """Batch: scale and shift, and it keeps mean and deviation. Local response keeps four tensors, one padded by 4."""
    channels, height, width = output
    parameters = 2 * channels
    kept = prod(output) + 2 * channels
    if kind == "lrn":
        parameters = 0
        kept = 4 * (channels + 1) * height * width
    return Layer(
        f"block{block}.norm{index}", block, kind, 1, channels, channels, output, parameters, 0, kept
    )


def _classifier(features: int, hidden: Sequence[int], classes: int) -> Iterator[Layer]:
    """A hidden layer keeps the ReLU's result, the dropout's mask and its result; the last one the log-softmax."""
    for index, width in enumerate([*hidden, classes], 1):
        name, kept = (f"hidden{index}", 3 * width) if index <= len(hidden) else ("output", width)
        parameters = (features + 1) * width
        macs = features * width
        yield Layer(name, None, "linear", 1, features, width, (width, 1, 1), parameters, macs, kept)
        features = width


def parameters(layers: Iterable[Layer]) -> int:
    return sum(layer.parameters for layer in layers)


def macs(layers: Iterable[Layer]) -> int:
    """Multiply-adds of one image's forward pass."""
    return sum(layer.macs for layer in layers)


def weight_layers(layers: Iterable[Layer]) -> int:
    """The number in VGG-16: convolutions and linear layers."""
    return sum(layer.kind in ("conv", "linear") for layer in layers)
