"""Weights to and from torchvision's naming of VGG (`features.0.weight`, ..., `classifier.6.bias`)."""

from collections.abc import Mapping

import torch
from torch import nn

Weights = dict[str, torch.Tensor]


def torchvision_names(net: nn.Sequential) -> dict[str, str]:
    """Maps each of our state-dict names to torchvision's. Both list their layers in the order of the data.

    torchvision numbers the modules of `features` and `classifier`, where ReLU, pooling and dropout take a number too
    and the pooling comes after the ReLU; a layer with weights therefore stands at the same place in both.
    """
    stack, _, head = net
    names, index = {}, 0
    for block_index, block in enumerate(stack.children()):
        for layer_index, layer in enumerate(block.children()):
            for name in layer.state_dict():
                names[f"0.{block_index}.{layer_index}.{name}"] = f"features.{index}.{name}"
            index += 1
    for layer_index, layer in enumerate(head.children()):
        for name in layer.state_dict():
            names[f"2.{layer_index}.{name}"] = f"classifier.{layer_index}.{name}"
    return names


def load_torchvision_weights(net: nn.Sequential, weights: Mapping[str, torch.Tensor]) -> None:
    """Fills `net` from a state dict in torchvision's naming. Raises RuntimeError where a name or shape differs."""
    names = torchvision_names(net)
    theirs = {ours: weights[name] for ours, name in names.items() if name in weights}
    net.load_state_dict(theirs, strict=True)


def save_torchvision_weights(net: nn.Sequential) -> Weights:
    """The state dict of `net` in torchvision's naming."""
    names = torchvision_names(net)
    return {names[ours]: tensor for ours, tensor in net.state_dict().items()}
