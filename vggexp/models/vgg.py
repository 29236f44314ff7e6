"""The VGG network: an architecture is a list of rows; a row is the arguments of one `vgg_block`.

Source: Simonyan and Zisserman 2015, "Very Deep Convolutional Networks", arXiv:1409.1556, section 2
and table 1.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from vggexp.models.layers import BatchNorm2d, MaxPool2d
from vggexp.models.shapes import Block, widen

Norm = str  # "none", "batch" or "lrn"


class FusedBlock(nn.Sequential):
    """The layers of a block in their order, under autocast with fewer passes over the memory.

    `fuse` switches this on. The function is the same except for rounding.
    """

    is_fused = False

    def forward(self, images: Tensor) -> Tensor:
        if not (self.is_fused and torch.is_autocast_enabled(images.device.type)):
            return super().forward(images)
        # This imports Triton, which not every platform has.
        from vggexp.models import triton_ops

        layers = [layer for layer in self if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
        for layer, following in pairwise([*layers, None]):
            assert layer is not None
            if isinstance(following, nn.BatchNorm2d):
                images = layer(images)
                continue
            pool = 2 if following is None else 1
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                images = triton_ops.convolution(images, layer.weight, layer.bias, pool)
            else:
                images = triton_ops.bias_pool_relu(layer(images), None, pool)
        return images


def fuse(model: nn.Module) -> None:
    """Lets the blocks use the kernels of vggexp.models.triton_ops."""
    for module in model.modules():
        if isinstance(module, FusedBlock):
            module.is_fused = True


def vgg_block(
    convs: int, channels: int, in_channels: int, pointwise: int = 0, norm: Norm = "none"
) -> nn.Sequential:
    """`convs` 3x3 convolutions that keep the size, then 2x2 max-pooling that halves the size.

    [N, in_channels, H, W] -> [N, channels, H // 2, W // 2]. The pooling stands before the last
    ReLU. Both are monotone, so the function is the same, with a quarter of the ReLU's work.

    Args:
        pointwise: Number of last convolutions that are 1x1 (configuration C).
        norm: "batch": after every convolution. "lrn": once, after the first ReLU (configuration
            A-LRN).
    """
    layers: list[nn.Module] = []
    for index in range(convs):
        kernel = 1 if index >= convs - pointwise else 3
        layers.append(nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2))
        if norm == "batch":
            layers.append(BatchNorm2d(channels))
        layers.append(nn.ReLU(inplace=True))
        if norm == "lrn" and index == 0:
            # Krizhevsky et al. 2012, section 3.3: n=5, alpha=1e-4, beta=0.75, k=2. torch divides
            # alpha by n.
            layers.append(nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0))
        in_channels = channels
    pool = MaxPool2d(2)
    if isinstance(layers[-1], nn.ReLU):
        layers.insert(len(layers) - 1, pool)
    else:
        # Response normalization looks across channels, so the pooling cannot come before it.
        layers.append(pool)
    return nn.Sequential(*layers) if norm == "lrn" else FusedBlock(*layers)


def vgg_stack(blocks: Sequence[Block], in_channels: int, norm: Norm = "none") -> nn.Sequential:
    """[N, in_channels, H, W] -> [N, C, H >> len(blocks), W >> len(blocks)], C of the last block."""
    stack = nn.Sequential()
    for index, block in enumerate(blocks):
        block_norm = norm
        if norm == "lrn" and index > 0:
            block_norm = "none"
        stack.append(
            vgg_block(block.convs, block.channels, in_channels, block.pointwise, block_norm)
        )
        in_channels = block.channels
    return stack


def classifier(features: int, hidden: Sequence[int], dropout: float, classes: int) -> nn.Sequential:
    """[N, features] -> logits [N, classes].

    Each `hidden` width is a linear layer, ReLU and dropout. A linear layer ends the classifier.
    """
    layers: list[nn.Module] = []
    for width in hidden:
        layers.append(nn.Linear(features, width))
        layers.append(nn.ReLU(inplace=True))
        layers.append(nn.Dropout(dropout))
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


def vgg(
    blocks: Sequence[Block],
    *,
    norm: Norm,
    hidden: Sequence[int],
    dropout: float,
    width: float,
    in_channels: int,
    size: int,
    classes: int,
) -> nn.Sequential:
    """[N, in_channels, size, size] -> logits [N, classes].

    `size` must survive len(blocks) halvings.
    """
    blocks = widen(blocks, width)
    map_size = size >> len(blocks)
    features = blocks[-1].channels * map_size * map_size
    head = classifier(features, hidden, dropout, classes)
    return nn.Sequential(vgg_stack(blocks, in_channels, norm), nn.Flatten(), head)
