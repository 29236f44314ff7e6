"""The dense network against the ordinary one, and against windows of the last map and of the picture, by hand."""

import pytest
import torch
from torch import nn

from vggexp.models.classic import alexnet, lenet
from vggexp.models.dense import to_fully_convolutional
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg

ROWS = [Block(1, 8), Block(2, 12), Block(2, 16)]


def network(blocks=ROWS, *, norm="none", hidden=(24, 20), channels=3, size=32):
    """With batch norm's mean and deviation as if it had been trained."""
    torch.manual_seed(0)
    facts = {"in_channels": channels, "size": size, "classes": 7}
    model = vgg(blocks, norm=norm, hidden=hidden, dropout=0.5, width=1, **facts)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def pictures(size, channels=3, width=None):
    return torch.randn(4, channels, size, width or size, generator=torch.Generator().manual_seed(1))


CLASSIC = {"in_channels": 3, "classes": 7}
NETS = {
    "plain": (network, 32),
    "batch norm": (lambda: network(norm="batch"), 32),
    "response norm": (lambda: network(norm="lrn"), 32),
    "one linear layer": (lambda: network(hidden=()), 32),
    "1x1 convolutions": (lambda: network([Block(3, 8, 1), Block(2, 12, 2)]), 32),
    "a side that is cut": (lambda: network(size=43), 43),
    "a last map of one": (lambda: network(size=8), 8),
    "grey": (lambda: network(channels=1), 32),
    "lenet": (lambda: lenet(size=28, **CLASSIC).eval(), 28),
    "alexnet": (lambda: alexnet(size=70, dropout=0.5, **CLASSIC).eval(), 70),
}


@pytest.mark.parametrize("name", NETS)
@torch.inference_mode()
def test_at_the_training_size_it_is_the_network(name):
    build, size = NETS[name]
    model = build()
    images = pictures(size, 1 if name == "grey" else 3)
    assert torch.equal(to_fully_convolutional(model)(images), model(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(to_fully_convolutional(model)(images), model(images).float())


@pytest.mark.parametrize("name", ["plain", "batch norm", "one linear layer"])
@torch.inference_mode()
def test_the_score_map_is_the_classifier_at_each_place_of_the_last_map(name):
    model = NETS[name][0]()
    features, flatten, classifier = model
    images = pictures(48, width=61)
    maps = features(images)
    down, across = maps.shape[2] - 3, maps.shape[3] - 3  # windows of 4x4, as for 32 pixels
    assert (down, across) == (3, 4)
    logits = [
        classifier(flatten(maps[:, :, top : top + 4, left : left + 4]))
        for top in range(down)
        for left in range(across)
    ]
    torch.testing.assert_close(
        to_fully_convolutional(model)(images), torch.stack(logits).mean(0), atol=1e-5, rtol=0
    )


@torch.inference_mode()
def test_it_is_the_network_over_all_windows_of_the_picture():
    """Where no padding stands between them: with 1x1 convolutions, and windows a stride of the network apart."""
    model = network([Block(1, 8, 1), Block(1, 12, 1)], size=16)
    images = pictures(28, width=24)
    logits = [
        model(images[:, :, top : top + 16, left : left + 16])
        for top in range(0, 13, 4)
        for left in range(0, 9, 4)
    ]
    assert len(logits) == 4 * 3
    torch.testing.assert_close(
        to_fully_convolutional(model)(images), torch.stack(logits).mean(0), atol=1e-5, rtol=0
    )


@torch.inference_mode()
def test_it_is_the_convolutions_of_the_paper():
    model = network()
    features, _, classifier = model
    maps = features(pictures(48, width=61))
    for layer in classifier:
        if isinstance(layer, nn.Linear):
            side = 4 if layer is classifier[0] else 1
            maps = nn.functional.conv2d(
                maps, layer.weight.view(len(layer.weight), -1, side, side), layer.bias
            )
        else:
            maps = layer(maps)
    assert maps.shape == (4, 7, 3, 4)
    torch.testing.assert_close(
        to_fully_convolutional(model)(pictures(48, width=61)), maps.mean((2, 3)), atol=1e-5, rtol=0
    )


def test_the_weights_are_shared():
    model = network()
    assert {id(tensor) for tensor in to_fully_convolutional(model).parameters()} == {
        id(tensor) for tensor in model.parameters()
    }


def test_a_smaller_picture_has_no_score():
    with pytest.raises(RuntimeError, match="size is 4"):
        to_fully_convolutional(network())(pictures(31))
