"""A network over pictures larger than those it was trained on: its linear layers become convolutions.

Source: Simonyan and Zisserman 2015, arXiv:1409.1556, section 3.2.
"""

from math import isqrt

from torch import nn


def dense(net: nn.Sequential) -> nn.Sequential:
    """[N, C, H, W] -> logits [N, classes]: the mean of the class score map, one score for each place of the last map.

    net: features, flatten, classifier, as all of ours are; its weights are shared, not copied. The first linear layer
    becomes a convolution as large as the last map was in training, the others 1x1. A picture of the training size has
    one place and the logits of `net`; a smaller last map is refused by torch (RuntimeError).
    """
    features, _, classifier = net
    channels = [layer.out_channels for layer in features.modules() if isinstance(layer, nn.Conv2d)][-1]
    layers: list[nn.Module] = []
    for layer in classifier.children():
        layers.append(_convolution(layer, channels) if isinstance(layer, nn.Linear) else layer)
        channels = layer.out_features if isinstance(layer, nn.Linear) else channels
    return nn.Sequential(features, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def _convolution(linear: nn.Linear, channels: int) -> nn.Conv2d:
    """The linear layer over a map [channels, side, side] that was flattened."""
    side = isqrt(linear.in_features // channels)
    made = nn.Conv2d(channels, linear.out_features, side, device="meta")
    made.weight, made.bias = nn.Parameter(linear.weight.detach().view(made.weight.shape)), linear.bias
    return made
