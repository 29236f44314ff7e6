"""LeNet and AlexNet, in today's common form.

The docstrings list the departures from the papers.
"""

from torch import nn

from vggexp.models.layers import MaxPool2d
from vggexp.models.shapes import (
    ALEXNET_HIDDEN,
    LENET_HIDDEN,
    alexnet_map_size,
    lenet_map_size,
)
from vggexp.models.vgg import classifier


def lenet(*, in_channels: int, size: int, classes: int) -> nn.Sequential:
    """LeNet-5, [N, in_channels, size, size] -> logits [N, classes].

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section
    II-B. Departures: every map of the second convolution sees every map of the first, ReLU and
    max-pooling replace scaled tanh and trainable subsampling, and softmax replaces radial basis
    functions.
    """
    map_size = lenet_map_size(size)
    features = nn.Sequential(
        nn.Conv2d(in_channels, 6, 5, padding=2),
        MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 16, 5),
        MaxPool2d(2),
        nn.ReLU(inplace=True),
    )
    head = classifier(16 * map_size * map_size, LENET_HIDDEN, 0.0, classes)
    return nn.Sequential(features, nn.Flatten(), head)


def alexnet(*, dropout: float, in_channels: int, size: int, classes: int) -> nn.Sequential:
    """AlexNet on one device, [N, in_channels, size, size] -> logits [N, classes].

    Source: Krizhevsky et al. 2012, "ImageNet classification with deep convolutional neural
    networks", with the channel counts of Krizhevsky 2014, arXiv:1404.5997 (one tower). Departure:
    no response normalization.
    """
    map_size = alexnet_map_size(size)
    features = nn.Sequential(
        nn.Conv2d(in_channels, 64, 11, stride=4, padding=2),
        MaxPool2d(3, 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(64, 192, 5, padding=2),
        MaxPool2d(3, 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(192, 384, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(384, 256, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(256, 256, 3, padding=1),
        MaxPool2d(3, 2),
        nn.ReLU(inplace=True),
    )
    head = classifier(256 * map_size * map_size, ALEXNET_HIDDEN, dropout, classes)
    return nn.Sequential(features, nn.Flatten(), head)
