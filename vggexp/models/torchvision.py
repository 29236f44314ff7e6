"""Weights under torchvision's names of VGG (`features.0.weight`, ..., `classifier.6.bias`)."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from vggexp.errors import CheckpointError
from vggexp.models.transfer import SourceLayer, linear_names

NAME = re.compile(r"(features|classifier)\.(\d{1,4})\.(\w+)")
Weights = dict[str, torch.Tensor]
NumberedLayers = dict[int, Weights]


def torchvision_names(model: nn.Sequential) -> dict[str, str]:
    """Maps each of our state-dict names to torchvision's. Both list their layers in data order.

    torchvision numbers the modules of `features` and `classifier`. ReLU, pooling and dropout have a
    number too, and the pooling comes after the ReLU. A layer with weights therefore has the same
    number in both.
    """
    stack, _, head = model
    names = {}
    index = 0
    for block_index, block in enumerate(stack.children()):
        for layer_index, layer in enumerate(block.children()):
            prefix = f"0.{block_index}.{layer_index}"
            for name in layer.state_dict():
                names[f"{prefix}.{name}"] = f"features.{index}.{name}"
            index += 1
    for layer_index, layer in enumerate(head.children()):
        for name in layer.state_dict():
            names[f"2.{layer_index}.{name}"] = f"classifier.{layer_index}.{name}"
    return names


def load_torchvision_weights(model: nn.Sequential, weights: Mapping[str, torch.Tensor]) -> None:
    """Fills the model from a state dict with torchvision's names.

    Raises:
        RuntimeError: A name or a shape differs.
    """
    state_dict = {}
    names = torchvision_names(model)
    for name, torchvision_name in names.items():
        if torchvision_name in weights:
            state_dict[name] = weights[torchvision_name]
    model.load_state_dict(state_dict, strict=True)


def save_torchvision_weights(model: nn.Sequential) -> Weights:
    """Returns the model's state dict with torchvision's names."""
    names = torchvision_names(model)
    return {names[name]: tensor for name, tensor in model.state_dict().items()}


def parse_torchvision_layers(weights: object) -> dict[str, SourceLayer]:
    """Returns the layers of a state dict of torchvision, under the names of `named_layers`.

    ReLU and pooling have a number too. A step of more than two from a layer with weights to the
    next convolution therefore means a pooling in between.

    Raises:
        CheckpointError: `weights` is not such a state dict.
    """
    features, classifier = _split_by_number(weights)
    layers = {}
    block = 1
    conv = 0
    last_index = -2
    for index in sorted(features):
        tensors = features[index]
        kind = "norm"
        if tensors["weight"].ndim == 4:
            kind = "conv"
            if index - last_index > 2:
                block += 1
                conv = 0
            conv += 1
        name = f"block{block}.{kind}{conv}"
        layers[name] = SourceLayer(f"features.{index}", tensors)
        last_index = index
    indices = sorted(classifier)
    names = linear_names(len(indices))
    for name, index in zip(names, indices, strict=True):
        layers[name] = SourceLayer(f"classifier.{index}", classifier[index])
    return layers


def _split_by_number(weights: object) -> tuple[NumberedLayers, NumberedLayers]:
    """Returns the tensors of `features` and of `classifier`, by the number of their layer."""
    parts: dict[str, NumberedLayers] = {"features": {}, "classifier": {}}
    tensors = weights if isinstance(weights, Mapping) else {}
    for name, tensor in tensors.items():
        match = NAME.fullmatch(str(name))
        if match is None or not isinstance(tensor, torch.Tensor):
            raise CheckpointError(
                f"{str(name)[:60]!r} is no tensor of torchvision's VGG, as features.0.weight is"
            )
        if tensor.layout != torch.strided or tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise CheckpointError(f"{name} is not stored value by value")
        part, number, tensor_name = match.groups()
        layer = parts[part].setdefault(int(number), {})
        layer[tensor_name] = tensor
    layers = [*parts["features"].values(), *parts["classifier"].values()]
    if not parts["features"] or not all("weight" in layer for layer in layers):
        raise CheckpointError(
            "holds no weights in torchvision's naming (features.0.weight, ..., classifier.6.bias)"
        )
    return parts["features"], parts["classifier"]
