"""What a network sees in an image: feature maps, Grad-CAM and occlusion sensitivity.

All functions take a model in eval mode that returns logits, and images as the network receives
them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

PATCH_SHARE = 4  # the occluded square has a fourth of the image's side
STRIDE_SHARE = 2  # it moves by half of its side
BATCH_SIZE = 64  # images


class Stage(NamedTuple):
    """A part of the network after which the feature maps are shown."""

    name: str
    module: nn.Module


class FeatureMaps(NamedTuple):
    """The most active channels after one stage."""

    stage: str
    channels: list[int]  # indices, by their mean activation, the highest first
    maps: Tensor  # [channels, H, W]
    total: int  # channels of the stage


def stages(model: nn.Sequential) -> list[Stage]:
    """Returns each block of a VGG, or each ReLU between the convolutions of another network."""
    features = model[0]
    assert isinstance(features, nn.Sequential)
    if isinstance(features[0], nn.Sequential):
        return [Stage(f"block{index}", block) for index, block in enumerate(features, 1)]
    activations = [module for module in features if isinstance(module, nn.ReLU)]
    return [Stage(f"conv{index}", module) for index, module in enumerate(activations, 1)]


def last_convolution(model: nn.Sequential) -> nn.Module:
    """Returns the last convolution, or the batch norm behind it."""
    features = model[0]
    kinds = nn.Conv2d | nn.BatchNorm2d
    return [module for module in features.modules() if isinstance(module, kinds)][-1]


@torch.inference_mode()
def feature_maps(model: nn.Sequential, image: Tensor, count: int) -> Iterator[FeatureMaps]:
    """Yields the `count` most active channels after each stage, for one image [1, C, H, W]."""
    outputs: list[Tensor] = []
    handles = []
    parts = stages(model)
    for stage in parts:
        # The next layer may overwrite its input, so the output is copied.
        hook = stage.module.register_forward_hook(
            lambda _module, _inputs, output: outputs.append(output[0].clone())
        )
        handles.append(hook)
    try:
        model(image)
    finally:
        for handle in handles:
            handle.remove()
    for stage, output in zip(parts, outputs, strict=True):
        order = output.mean((1, 2)).argsort(descending=True, stable=True)
        channels = order[:count].tolist()
        yield FeatureMaps(stage.name, channels, output[channels], len(output))


def grad_cam(model: nn.Sequential, image: Tensor, label: int) -> Tensor:
    """Returns where the evidence for a class lies, [H, W] of the image, at least 0.

    The map is relu(sum_k a_k A_k). A_k is map k of the last convolution after its batch norm and
    ReLU and before its pooling. a_k is the mean over the map of the gradient of the class's logit.
    The map is enlarged bilinearly to the size of the image.

    Source: Selvaraju et al. 2017, "Grad-CAM", arXiv:1610.02391, section 3, equations 1 and 2.

    Args:
        image: [1, C, H, W].
        label: Index of the class.
    """
    captured: list[Tensor] = []

    def capture(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        captured.append(output)
        return output.clone()  # the ReLU behind it works in place

    handle = last_convolution(model).register_forward_hook(capture)
    try:
        with torch.enable_grad():
            # With an input that needs a gradient, frozen weights do not end the graph.
            logits = model(image.detach().requires_grad_())
            (gradient,) = torch.autograd.grad(logits[0, label], captured[0])
    finally:
        handle.remove()
    weights = gradient[0].mean((1, 2))
    maps = captured[0][0].detach().relu()
    heat = torch.einsum("k,khw->hw", weights, maps).relu()
    size = tuple(image.shape[-2:])
    return functional.interpolate(heat[None, None], size, mode="bilinear")[0, 0]


@torch.inference_mode()
def occlusion(model: nn.Module, image: Tensor, fill: float = 0.0) -> Tensor:
    """Returns how much the probability of each class falls if a pixel is covered, [classes, H, W].

    A square slides over the image. The value of a pixel is the mean fall over the squares that
    cover it; it is negative if the probability rises.

    Source: Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks",
    arXiv:1311.2901, section 4.2.

    Args:
        image: [1, C, H, W].
        fill: Value of the covered pixels; 0 is the mean of normalized images.
    """
    size = image.shape[-1]
    side = max(1, size // PATCH_SHARE)
    corners = square_corners(size, side)
    positions = [(top, left) for top in corners for left in corners]
    probs = model(image).softmax(1)[0]
    falls = torch.zeros(len(probs), size, size)
    counts = torch.zeros(size, size)
    for start in range(0, len(positions), BATCH_SIZE):
        chunk = positions[start : start + BATCH_SIZE]
        covered = image.repeat(len(chunk), 1, 1, 1)
        for picture, (top, left) in zip(covered, chunk, strict=True):
            picture[:, top : top + side, left : left + side] = fill
        fall = probs - model(covered).softmax(1)
        for values, (top, left) in zip(fall, chunk, strict=True):
            rows = slice(top, top + side)
            columns = slice(left, left + side)
            falls[:, rows, columns] += values[:, None, None]
            counts[rows, columns] += 1
    return falls / counts


def square_corners(size: int, side: int) -> list[int]:
    """Returns first pixels of squares that cover `size` pixels; the last one ends at the edge."""
    stride = max(1, side // STRIDE_SHARE)
    corners = list(range(0, size - side, stride))
    return [*corners, size - side]


def first_filters(model: nn.Module) -> Tensor:
    """Returns the weights of the first convolution, [filters, C, kernel, kernel]."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            return module.weight.detach()
    raise ValueError("no convolution")
