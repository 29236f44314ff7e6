"""Grad-CAM and occlusion are those of a plain network written with torch alone."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from vggexp.look.saliency import (
    feature_maps,
    first_filters,
    grad_cam,
    occlusion,
    square_corners,
    stages,
)
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.rng import generator

CLASSES = 4
VGG = {
    "blocks": [Block(1, 6), Block(2, 8)],
    "hidden": (12,),
    "dropout": 0.5,
    "width": 1,
    "size": 16,
    "classes": CLASSES,
}
MODELS = {
    "vgg": (lambda channels: vgg(**VGG, norm="none", in_channels=channels), 16),
    "vgg_bn": (lambda channels: vgg(**VGG, norm="batch", in_channels=channels), 16),
    "vgg_lrn": (lambda channels: vgg(**VGG, norm="lrn", in_channels=channels), 16),
    "lenet": (lambda channels: lenet(in_channels=channels, size=28, classes=CLASSES), 28),
    "alexnet": (
        lambda channels: alexnet(dropout=0.5, in_channels=channels, size=64, classes=CLASSES),
        64,
    ),
}


@pytest.fixture(params=[(name, channels) for name in MODELS for channels in (1, 3)], ids=str)
def subject(request):
    """A network with running statistics of some images, and an image."""
    name, channels = request.param
    build, size = MODELS[name]
    model = build(channels)
    initialize(model, "kaiming", 0)
    images = torch.randn(8, channels, size, size, generator=generator(0, "images"))
    with torch.no_grad():
        model.train()(images)
    return model.eval(), images[:1]


def plain_layers(model):
    """Returns the layers as a plain network has them: each ReLU before the pooling behind it."""
    layers = []
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            continue
        if isinstance(module, nn.ReLU) and "Pool" in type(layers[-1]).__name__:
            layers.insert(-1, nn.ReLU())
        elif isinstance(module, nn.ReLU):
            layers.append(nn.ReLU())
        elif "Pool" in type(module).__name__:
            layers.append(nn.MaxPool2d(module.kernel_size, module.stride))
        else:
            layers.append(module)
    return layers


def plain_grad_cam(model, image, label):
    """Equations 1 and 2 of the paper, with loops."""
    layers = plain_layers(model)
    last = max(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d))
    if isinstance(layers[last + 1], nn.BatchNorm2d):
        last += 1
    values = nn.Sequential(*layers[: last + 1])(image).detach().requires_grad_()
    maps = values.relu()
    logits = nn.Sequential(*layers[last + 2 :])(maps)
    (gradient,) = torch.autograd.grad(logits[0, label], values)
    heat = torch.zeros(maps.shape[2:])
    for k in range(maps.shape[1]):
        heat += gradient[0, k].mean() * maps[0, k].detach()
    heat = heat.clamp(min=0)[None, None]
    return functional.interpolate(heat, image.shape[2:], mode="bilinear")[0, 0]


@pytest.mark.parametrize("label", range(CLASSES))
def test_grad_cam_is_that_of_a_plain_network(subject, label):
    model, image = subject
    torch.testing.assert_close(grad_cam(model, image, label), plain_grad_cam(model, image, label))


def test_grad_cam_leaves_the_model_alone(subject):
    model, image = subject
    before = {name: value.clone() for name, value in model.state_dict().items()}
    grad_cam(model, image, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@torch.no_grad()
def plain_occlusion(model, image):
    """The mean fall over all squares of a fourth of the side that cover a pixel, with loops.

    Returns a map for each class.
    """
    size = image.shape[-1]
    side = size // 4
    corners = sorted({*range(0, size - side, side // 2), size - side})
    probs = model(image).softmax(1)[0]
    heat = torch.zeros(CLASSES, size, size)
    count = torch.zeros(size, size)
    for top in corners:
        for left in corners:
            covered = image.clone()
            covered[:, :, top : top + side, left : left + side] = 0
            falls = probs - model(covered).softmax(1)[0]
            for y in range(top, top + side):
                count[y, left : left + side] += 1
                heat[:, y, left : left + side] += falls[:, None]
    return heat / count


def test_occlusion_is_that_of_explicit_loops(subject):
    model, image = subject
    expected = plain_occlusion(model, image)
    torch.testing.assert_close(occlusion(model, image), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(("size", "side"), [(16, 4), (28, 7), (5, 1), (1, 1), (17, 4)])
def test_the_squares_cover_every_pixel(size, side):
    covered = {
        pixel for corner in square_corners(size, side) for pixel in range(corner, corner + side)
    }
    assert covered == set(range(size))


def test_feature_maps_are_those_after_each_stage(subject):
    model, image = subject
    found = list(feature_maps(model, image, 3))
    assert [maps.stage for maps in found] == [stage.name for stage in stages(model)]
    with torch.no_grad():
        last = model[0](image)[0]
    assert torch.equal(found[-1].maps, last[found[-1].channels])
    means = last.mean((1, 2))
    assert set(found[-1].channels) == set(means.topk(3).indices.tolist())


def test_the_first_filters_are_the_weights_of_the_first_convolution(subject):
    model, image = subject
    assert first_filters(model).shape[1] == image.shape[1]
