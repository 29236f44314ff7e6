"""LeNet and AlexNet, in today's common form.

The docstrings list the departures from the papers.
"""

from collections.abc import Sequence

from torch import nn

from vggexp.models.layers import MaxPool2d
from vggexp.models.shapes import (
    ALEXNET,
    ALEXNET_HIDDEN,
    LENET,
    LENET_HIDDEN,
    SpatialOp,
    feature_map_sizes,
)
from vggexp.models.vgg import classifier


def lenet(*, in_channels: int, size: int, classes: int) -> nn.Sequential:
    """LeNet-5, [N, in_channels, size, size] -> logits [N, classes].

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section
    II-B. Departures: every map of the second convolution sees every map of the first, ReLU and
    max-pooling replace scaled tanh and trainable subsampling, and softmax replaces radial basis
    functions.
    """
    return _network(LENET, LENET_HIDDEN, 0.0, in_channels, size, classes)


def alexnet(*, dropout: float, in_channels: int, size: int, classes: int) -> nn.Sequential:
    """AlexNet on one device, [N, in_channels, size, size] -> logits [N, classes].

    Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural
    networks", with the channel counts of Krizhevsky 2014, arXiv:1404.5997 (one tower). Departure:
    no response normalization.
    """
    return _network(ALEXNET, ALEXNET_HIDDEN, dropout, in_channels, size, classes)


def _network(
    ops: Sequence[SpatialOp],
    hidden: Sequence[int],
    dropout: float,
    in_channels: int,
    size: int,
    classes: int,
) -> nn.Sequential:
    """Returns the network, with each pooling before the ReLU of its convolution, as in a VGG."""
    layers: list[nn.Module] = []
    for op in ops:
        if op.channels is None:
            layers.insert(len(layers) - 1, MaxPool2d(op.kernel, op.stride))
        else:
            layers.append(nn.Conv2d(in_channels, op.channels, op.kernel, op.stride, op.padding))
            layers.append(nn.ReLU(inplace=True))
            in_channels = op.channels
    map_size = feature_map_sizes(size, ops)[-1]
    head = classifier(in_channels * map_size * map_size, hidden, dropout, classes)
    return nn.Sequential(nn.Sequential(*layers), nn.Flatten(), head)
