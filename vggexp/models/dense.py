"""A network over pictures larger than those it was trained on: its linear layers become convolutions.

Source: Simonyan and Zisserman 2015, arXiv:1409.1556, section 3.2.
"""

from math import isqrt

from torch import Tensor, nn


class FullyConvolutional(nn.Module):
    """[N, C, H, W] -> logits [N, classes]: the mean of the class score map.

    The classifier is applied to every window of the last map that is as large as the map was in training: that is a
    convolution, then 1x1 ones. As one product of all windows its sums are those of the ordinary network, whose logits
    a picture of the training size gets bit for bit. A smaller last map is refused by torch (RuntimeError).
    """

    def __init__(self, features: nn.Module, classifier: nn.Module, side: int):
        super().__init__()
        self.features = features
        self.classifier = classifier
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        windows = (
            self.features(images).unfold(2, self.side, 1).unfold(3, self.side, 1)
        )  # [N, C, h, w, side, side]
        places = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)
        scores = self.classifier(places.flatten(0, 2)).unflatten(0, places.shape[:3])
        return scores.float().mean((1, 2))


def to_fully_convolutional(model: nn.Sequential) -> FullyConvolutional:
    """net: features, flatten, classifier, as all of ours are. Its layers are shared, not copied."""
    features, _, classifier = model
    maps = [layer.out_channels for layer in features.modules() if isinstance(layer, nn.Conv2d)][-1]
    first = next(layer for layer in classifier.modules() if isinstance(layer, nn.Linear))
    return FullyConvolutional(features, classifier, isqrt(first.in_features // maps))
