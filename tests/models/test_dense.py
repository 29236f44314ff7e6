"""The fully convolutional model against the ordinary one, on windows of last map and image."""

import pytest
import torch
from torch import nn

from vggexp.models.classic import alexnet, lenet
from vggexp.models.dense import to_fully_convolutional
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg

BLOCKS = [Block(1, 8), Block(2, 12), Block(2, 16)]


def make_trained_model(blocks=BLOCKS, *, norm="none", hidden=(24, 20), channels=3, size=32):
    """Returns a model whose batch norms have the statistics of a training."""
    torch.manual_seed(0)
    facts = {"in_channels": channels, "size": size, "classes": 7}
    model = vgg(blocks, norm=norm, hidden=hidden, dropout=0.5, width=1, **facts)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return model.eval()


def make_images(height, channels=3, width=None):
    draws = torch.Generator().manual_seed(1)
    return torch.randn(4, channels, height, width or height, generator=draws)


CLASSIC = {"in_channels": 3, "classes": 7}
POINTWISE = [Block(3, 8, 1), Block(2, 12, 2)]
MODELS = {  # name: a function that builds the model, and its image size
    "plain": (make_trained_model, 32),
    "batch norm": (lambda: make_trained_model(norm="batch"), 32),
    "response norm": (lambda: make_trained_model(norm="lrn"), 32),
    "one linear layer": (lambda: make_trained_model(hidden=()), 32),
    "1x1 convolutions": (lambda: make_trained_model(POINTWISE), 32),
    "a size that is no multiple of 8": (lambda: make_trained_model(size=43), 43),
    "a last map of one pixel": (lambda: make_trained_model(size=8), 8),
    "gray": (lambda: make_trained_model(channels=1), 32),
    "lenet": (lambda: lenet(size=28, **CLASSIC).eval(), 28),
    "alexnet": (lambda: alexnet(size=70, dropout=0.5, **CLASSIC).eval(), 70),
}


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_at_the_training_size_the_logits_are_the_same(name):
    build, size = MODELS[name]
    model = build()
    images = make_images(size, 1 if name == "gray" else 3)
    assert torch.equal(to_fully_convolutional(model)(images), model(images))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(to_fully_convolutional(model)(images), model(images).float())


@pytest.mark.parametrize("name", ["plain", "batch norm", "one linear layer"])
@torch.inference_mode()
def test_the_score_map_is_the_classifier_at_each_position_of_the_last_map(name):
    build, _ = MODELS[name]
    model = build()
    features, flatten, classifier = model
    images = make_images(48, width=61)
    maps = features(images)
    rows = maps.shape[2] - 3  # windows of 4x4, as for 32 pixels
    columns = maps.shape[3] - 3
    assert rows == 3
    assert columns == 4
    logits = []
    for top in range(rows):
        for left in range(columns):
            window = maps[:, :, top : top + 4, left : left + 4]
            logits.append(classifier(flatten(window)))
    expected = torch.stack(logits).mean(0)
    torch.testing.assert_close(to_fully_convolutional(model)(images), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_logits_are_those_of_the_model_over_all_windows_of_the_image():
    """1x1 convolutions have no padding, and the windows are one stride of the model apart."""
    model = make_trained_model([Block(1, 8, 1), Block(1, 12, 1)], size=16)
    images = make_images(28, width=24)
    logits = []
    for top in range(0, 13, 4):
        for left in range(0, 9, 4):
            logits.append(model(images[:, :, top : top + 16, left : left + 16]))
    assert len(logits) == 4 * 3
    expected = torch.stack(logits).mean(0)
    torch.testing.assert_close(to_fully_convolutional(model)(images), expected, atol=1e-5, rtol=0)


@torch.inference_mode()
def test_the_logits_are_those_of_the_papers_convolutions():
    model = make_trained_model()
    images = make_images(48, width=61)
    features, _, classifier = model
    maps = features(images)
    for layer in classifier:
        if isinstance(layer, nn.Linear):
            size = 4 if layer is classifier[0] else 1
            weight = layer.weight.view(len(layer.weight), -1, size, size)
            maps = nn.functional.conv2d(maps, weight, layer.bias)
        else:
            maps = layer(maps)
    assert maps.shape == (4, 7, 3, 4)
    logits = to_fully_convolutional(model)(images)
    torch.testing.assert_close(logits, maps.mean((2, 3)), atol=1e-5, rtol=0)


def test_the_weights_are_shared():
    model = make_trained_model()
    shared = {id(tensor) for tensor in to_fully_convolutional(model).parameters()}
    assert shared == {id(tensor) for tensor in model.parameters()}


def test_a_smaller_image_is_refused():
    with pytest.raises(RuntimeError, match="size is 4"):
        to_fully_convolutional(make_trained_model())(make_images(31))
