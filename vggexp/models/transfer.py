"""Transfers weights from one model to another, also to grayscale input, and freezes layers."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from torch import Tensor, nn

from vggexp.errors import CheckpointError

# Convolutions that a deeper model takes from a shallower one; arXiv:1409.1556, section 3.1.
CONVS_FROM_SHALLOWER = 4


class SourceLayer(NamedTuple):
    """A layer of the source."""

    name: str  # in the source
    tensors: Mapping[str, Tensor]  # weight, bias, ...


class LayerTransfer(NamedTuple):
    """What a layer of the model takes."""

    source: SourceLayer | None  # None: the layer keeps its initial weights
    note: str = ""  # reason, or what was changed


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the layers with weights, in data order, under the names of vggexp.models.shapes.

    The names are block1.conv1, ..., output.
    """
    layers: dict[str, nn.Module] = {}
    linear = []
    block = 1
    conv = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            conv += 1
            layers[f"block{block}.conv{conv}"] = module
        elif isinstance(module, nn.BatchNorm2d):
            layers[f"block{block}.norm{conv}"] = module
        elif isinstance(module, nn.MaxPool2d):
            block += 1
            conv = 0
        elif isinstance(module, nn.Linear):
            linear.append(module)
    names = linear_names(len(linear))
    return layers | dict(zip(names, linear, strict=True))


def linear_names(count: int) -> list[str]:
    """Returns the names of the linear layers: hidden1, hidden2, ..., output."""
    names = [f"hidden{number}" for number in range(1, count)]
    if count > 0:
        names.append("output")
    return names


def source_layers(model: nn.Module) -> dict[str, SourceLayer]:
    """Returns all layers of a model as a source."""
    layers = named_layers(model)
    return {name: SourceLayer(name, module.state_dict()) for name, module in layers.items()}


def plan_transfer(model: nn.Module, source: Mapping[str, SourceLayer]) -> dict[str, LayerTransfer]:
    """Returns what each layer of the model takes from the source.

    Models with the same convolutions transfer all of them. Otherwise the source's first four
    convolutions go to the same number in the same block: the fourth convolution of a deeper model,
    counted in data order, has another shape. Batch norms go with their convolutions. Linear layers
    are taken if their shapes agree.

    Raises:
        CheckpointError: A convolution does not fit.
    """
    layers = named_layers(model)
    source_convs = [name for name in source if ".conv" in name]
    convs = [name for name in layers if ".conv" in name]
    if source_convs != convs:
        convs = source_convs[:CONVS_FROM_SHALLOWER]
    absent = sorted(set(convs) - layers.keys())
    if absent:
        raise CheckpointError(
            f"{absent[0]}: this network has no such layer; begin from a shallower one"
        )
    for conv in convs:
        norm = conv.replace(".conv", ".norm")
        if norm in source and norm not in layers:
            raise CheckpointError(
                f"{norm}: this network has no such layer, and {conv} was trained with it; "
                "set arch.norm=batch"
            )
    transfers = {}
    for name, module in layers.items():
        layer = source.get(name)
        conv = name.replace(".norm", ".conv")
        if layer is None or (".conv" in conv and conv not in convs):
            transfers[name] = LayerTransfer(None)
        else:
            transfers[name] = _fit(name, module, layer)
    return transfers


def _fit(name: str, module: nn.Module, layer: SourceLayer) -> LayerTransfer:
    """Returns how the module takes the layer.

    Raises:
        CheckpointError: The layer does not fit a convolution or batch norm.
    """
    note = ""
    if _needs_channel_sum(module, layer):
        summed = layer.tensors["weight"].sum(1, keepdim=True)
        tensors = {**layer.tensors, "weight": summed}
        layer = SourceLayer(layer.name, tensors)
        note = "its input channels summed"
    problem = shape_mismatch(module, layer)
    if not problem:
        return LayerTransfer(layer, note)
    if isinstance(module, nn.Linear):
        return LayerTransfer(None, problem)
    raise CheckpointError(f"{name}: {problem}")


def _needs_channel_sum(module: nn.Module, layer: SourceLayer) -> bool:
    """Returns whether the model has one input channel and the source several.

    Grayscale images are equal in all channels, so the weights of the channels add up.
    """
    weight = layer.tensors.get("weight")
    if not isinstance(module, nn.Conv2d) or weight is None:
        return False
    return module.in_channels == 1 and weight.ndim == 4 and weight.shape[1] > 1


def shape_mismatch(module: nn.Module, layer: SourceLayer) -> str:
    """Describes the first tensor whose shape differs; empty if there is none.

    Counters are left out: they have no shape, and old files lack them.
    """
    shapes = _tensor_shapes(module.state_dict())
    source_shapes = _tensor_shapes(layer.tensors)
    for name in {**shapes, **source_shapes}:
        shape = shapes.get(name, "none")
        source_shape = source_shapes.get(name, "none")
        if shape != source_shape:
            return f"{name} {source_shape} there ({layer.name}), {shape} here"
    return ""


def _tensor_shapes(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: format_shape(tensor) for name, tensor in tensors.items() if tensor.ndim}


def format_shape(tensor: Tensor) -> str:
    """Returns for instance `64x3x3x3`."""
    return "x".join(map(str, tensor.shape))


def load_layers(model: nn.Module, transfers: Mapping[str, LayerTransfer]) -> None:
    """Copies the transferred weights into the model; all other weights stay as they are.

    Raises:
        CheckpointError: A weight is not finite.
    """
    for name, module in named_layers(model).items():
        source = transfers[name].source
        if source is None:
            continue
        for tensor_name, tensor in source.tensors.items():
            if not tensor.isfinite().all():
                raise CheckpointError(f"{source.name}.{tensor_name} holds NaN or infinity")
        module.load_state_dict(dict(source.tensors))


def describe_transfer(transfers: Mapping[str, LayerTransfer]) -> Iterator[tuple[str, str]]:
    """Yields a part and a text for each block and for the classifier.

    For instance: `block3`, `conv1 <- features.6, conv2 new`.
    """
    for part, names in groupby(transfers, _part):
        texts = [_describe_layer(name, transfers[name]) for name in names]
        yield part, ", ".join(texts)


def _part(name: str) -> str:
    return name.partition(".")[0] if "." in name else "classifier"


def _describe_layer(name: str, transfer: LayerTransfer) -> str:
    _, _, layer = name.rpartition(".")
    text = f"{layer} new"
    if transfer.source is not None:
        text = f"{layer} <- {transfer.source.name}"
    if transfer.note:
        text += f" ({transfer.note})"
    return text


def select_first_blocks(names: Iterable[str], blocks: int) -> list[str]:
    """Returns the names of layers in the first `blocks` blocks."""
    prefixes = tuple(f"block{number}." for number in range(1, blocks + 1))
    return [name for name in names if name.startswith(prefixes)]


def freeze(model: nn.Module, blocks: int) -> None:
    """Freezes the first `blocks` blocks: no gradient, and so neither update nor weight decay."""
    layers = named_layers(model)
    for name in select_first_blocks(layers, blocks):
        layers[name].requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Switches to train mode, except for frozen batch norms.

    A frozen batch norm keeps its running mean and variance and normalizes with them.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
