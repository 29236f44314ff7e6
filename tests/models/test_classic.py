"""LeNet and AlexNet, module by module. tests/models/test_shapes.py has their sizes."""

import pytest
import torch
from torch import nn

from vggexp.models.classic import alexnet, lenet
from vggexp.models.layers import MaxPool2d

SIZES = {"in_channels": 1, "size": 64, "classes": 3}


def lenet_features():
    return nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2),
        MaxPool2d(2),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 16, 5),
        MaxPool2d(2),
        nn.ReLU(inplace=True),
    )


def alexnet_features():
    return nn.Sequential(
        nn.Conv2d(1, 64, 11, stride=4, padding=2),
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


def draw(build):
    """Returns the modules, whose initial weights come from the same seed."""
    torch.manual_seed(0)
    return build()


@pytest.mark.parametrize(
    ("features", "model"),
    [
        (lenet_features, lambda: lenet(**SIZES)),
        (alexnet_features, lambda: alexnet(dropout=0.5, **SIZES)),
    ],
)
def test_modules_and_draws(features, model):
    expected = draw(features)
    actual, _, _ = draw(model)
    assert str(actual) == str(expected)
    for name, weight in expected.state_dict().items():
        assert torch.equal(actual.state_dict()[name], weight)


@pytest.mark.parametrize(
    ("model", "same"), [(lenet(**SIZES), True), (alexnet(dropout=0.5, **SIZES), False)]
)
def test_two_passes_in_training_differ_only_by_dropout(model, same):
    images = torch.ones(2, 1, 64, 64)
    assert model.training
    assert torch.equal(model(images), model(images)) == same
