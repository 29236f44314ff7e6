"""Weights with torchvision's names: files of torchvision, and files of something else."""

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from tests.models.test_transfer import CLASSIFIER, FEATURES, make_vgg, transfer
from vggexp.errors import CheckpointError
from vggexp.models.torchvision import parse_torchvision_layers, save_torchvision_weights
from vggexp.models.transfer import named_layers

LETTERS = {11: "A", 13: "B", 16: "D", 19: "E"}


class SmallTorchvisionVGG(nn.Module):
    """torchvision's VGG, with its names, a thirty-second of its channels and a small classifier."""

    def __init__(self, depth: int, norm: bool):
        super().__init__()
        torch.manual_seed(depth)
        channels = [step if step == "M" else step // 32 for step in cfgs[LETTERS[depth]]]
        self.features = make_layers(channels, norm)
        widths = (16 * 7 * 7, 24, 24, 7)
        first, second, last = (nn.Linear(*pair) for pair in pairwise(widths))
        relu_dropout = [nn.ReLU(), nn.Dropout()]
        self.classifier = nn.Sequential(first, *relu_dropout, second, *relu_dropout, last)
        for tensor in self.state_dict().values():  # also the statistics of batch norm
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape))
            else:
                tensor.fill_(9)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", LETTERS)
def test_the_small_model_has_torchvisions_names(depth, norm):
    with torch.device("meta"):
        original = getattr(torchvision.models, f"vgg{depth}{'_bn' if norm else ''}")()
    assert list(SmallTorchvisionVGG(depth, norm).state_dict()) == list(original.state_dict())


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", LETTERS)
def test_a_file_of_torchvision(depth, norm):
    model = make_vgg(str(depth), norm="batch" if norm else "none", size=224)
    weights = SmallTorchvisionVGG(depth, norm).state_dict()
    assert transfer(model, parse_torchvision_layers(weights)) == list(named_layers(model))
    saved = save_torchvision_weights(model)
    assert saved.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(saved[name], tensor), name


@pytest.mark.parametrize("depth", ["13", "16", "19"])
def test_a_deeper_network_from_a_file_of_torchvision(depth):
    model = make_vgg(depth, size=224)
    source = SmallTorchvisionVGG(11, False)
    layers = parse_torchvision_layers(source.state_dict())
    assert transfer(model, layers) == [*FEATURES, *CLASSIFIER]
    fourth_conv = source.features[8]
    assert torch.equal(named_layers(model)["block3.conv2"].weight, fourth_conv.weight)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "holds no weights in torchvision's naming"),
        ([torch.zeros(1)], "holds no weights in torchvision's naming"),
        ({"net": {}}, "'net' is no tensor of torchvision's VGG, as features.0.weight is"),
        ({"features.0.weight": 1}, "'features.0.weight' is no tensor"),
        ({"conv1.weight": torch.zeros(1)}, "'conv1.weight' is no tensor"),
        ({7: torch.zeros(1)}, "'7' is no tensor"),
        ({"features.0.bias": torch.zeros(1)}, "holds no weights in torchvision's naming"),
        ({"classifier.0.weight": torch.zeros(1)}, "holds no weights in torchvision's naming"),
        ({"features.0.weight": torch.zeros(1).to_sparse()}, "is not stored value by value"),
        ({"features.0.weight": torch.zeros(1).expand(10**12)}, "is not stored value by value"),
    ],
)
def test_a_file_of_something_else(weights, message):
    with pytest.raises(CheckpointError, match=message):
        parse_torchvision_layers(weights)
