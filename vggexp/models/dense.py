"""A model for images larger than its training images: its linear layers become convolutions.

Source: Simonyan and Zisserman 2015, arXiv:1409.1556, section 3.2.
"""

from math import isqrt

from torch import Tensor, nn


class FullyConvolutional(nn.Module):
    """[N, C, H, W] -> logits [N, classes]: the mean of the class score map.

    The classifier is applied to every window of the last map that has the size of the last map in
    training. This is a convolution, followed by 1x1 convolutions. All windows form one product,
    so the sums are those of the ordinary model. An image of the training size gets the ordinary
    model's logits bit for bit. torch raises RuntimeError for a smaller last map.
    """

    def __init__(self, features: nn.Module, classifier: nn.Module, map_size: int):
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.map_size = map_size

    def forward(self, images: Tensor) -> Tensor:
        size = self.map_size
        maps = self.features(images)
        windows = maps.unfold(2, size, 1)
        windows = windows.unfold(3, size, 1)  # [N, C, h, w, size, size]
        windows = windows.permute(0, 2, 3, 1, 4, 5)
        features = windows.flatten(3)  # [N, h, w, C * size * size]
        logits = self.classifier(features.flatten(0, 2))
        score_map = logits.unflatten(0, features.shape[:3])
        return score_map.float().mean((1, 2))


def to_fully_convolutional(model: nn.Sequential) -> FullyConvolutional:
    """Converts a model of features, flatten and classifier, as all of ours are.

    The layers are shared with the model, not copied.
    """
    features, _, classifier = model
    convs = [layer for layer in features.modules() if isinstance(layer, nn.Conv2d)]
    linears = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
    map_pixels = linears[0].in_features // convs[-1].out_channels
    return FullyConvolutional(features, classifier, map_size=isqrt(map_pixels))
