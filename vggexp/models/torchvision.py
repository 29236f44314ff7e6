"""Weights to and from torchvision's naming of VGG (`features.0.weight`, ..., `classifier.6.bias`)."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from vggexp.errors import CheckpointError
from vggexp.models.transfer import SourceLayer, linear_names

NAME = re.compile(r"(features|classifier)\.(\d{1,4})\.(\w+)")
Weights = dict[str, torch.Tensor]


def torchvision_names(model: nn.Sequential) -> dict[str, str]:
    """Maps each of our state-dict names to torchvision's. Both list their layers in the order of the data.

    torchvision numbers the modules of `features` and `classifier`, where ReLU, pooling and dropout take a number too
    and the pooling comes after the ReLU; a layer with weights therefore stands at the same place in both.
    """
    stack, _, head = model
    names = {}
    index = 0
    for block_index, block in enumerate(stack.children()):
        for layer_index, layer in enumerate(block.children()):
            for name in layer.state_dict():
                names[f"0.{block_index}.{layer_index}.{name}"] = f"features.{index}.{name}"
            index += 1
    for layer_index, layer in enumerate(head.children()):
        for name in layer.state_dict():
            names[f"2.{layer_index}.{name}"] = f"classifier.{layer_index}.{name}"
    return names


def load_torchvision_weights(model: nn.Sequential, weights: Mapping[str, torch.Tensor]) -> None:
    """Fills `net` from a state dict in torchvision's naming. Raises RuntimeError where a name or shape differs."""
    names = torchvision_names(model)
    theirs = {ours: weights[name] for ours, name in names.items() if name in weights}
    model.load_state_dict(theirs, strict=True)


def save_torchvision_weights(model: nn.Sequential) -> Weights:
    """The state dict of `net` in torchvision's naming."""
    names = torchvision_names(model)
    return {names[ours]: tensor for ours, tensor in model.state_dict().items()}


def layers_in(weights: object) -> dict[str, SourceLayer]:
    """The layers of a state dict in torchvision's naming, named as `named_layers` does. Raises CheckpointError.

    ReLU and pooling take a number too, so a step of more than two from a layer with weights to the next convolution
    is a pooling between them.
    """
    features, classifier = _numbered(weights)
    found = dict[str, SourceLayer]()
    block = 1
    place = 0
    before = -2
    for index in sorted(features):
        given = SourceLayer(f"features.{index}", features[index])
        if convolution := given.tensors["weight"].ndim == 4:
            block, place = (block, place + 1) if index - before <= 2 else (block + 1, 1)
        found[f"block{block}.{'conv' if convolution else 'norm'}{place}"] = given
        before = index
    linear = [SourceLayer(f"classifier.{index}", classifier[index]) for index in sorted(classifier)]
    return found | dict(zip(linear_names(len(linear)), linear, strict=True))


def _numbered(weights: object) -> tuple[dict[int, Weights], dict[int, Weights]]:
    """The tensors of `features` and of `classifier`, by the number of their layer."""
    parts: dict[str, dict[int, Weights]] = {"features": {}, "classifier": {}}
    for name, tensor in weights.items() if isinstance(weights, Mapping) else ():
        match = NAME.fullmatch(name) if isinstance(name, str) else None
        if match is None or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{str(name)[:60]!r} is no tensor of torchvision's VGG, as features.0.weight is"
            )
        parts[match[1]].setdefault(int(match[2]), {})[match[3]] = tensor
    layers = [*parts["features"].values(), *parts["classifier"].values()]
    if not parts["features"] or not all("weight" in tensors for tensors in layers):
        raise CheckpointError(
            "holds no weights in torchvision's naming (features.0.weight, ..., classifier.6.bias)"
        )
    return parts["features"], parts["classifier"]
