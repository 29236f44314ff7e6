"""Weights for a network from another one: which layer takes which, grey input, and what is frozen."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import NamedTuple

from torch import Tensor, nn

from vggexp.errors import CheckpointError

FIRST = 4  # convolutions that a deeper net takes from a shallower one; arXiv:1409.1556, section 3.1


class SourceLayer(NamedTuple):
    """A layer of the source."""

    name: str  # there
    tensors: Mapping[str, Tensor]  # weight, bias, ...


class LayerTransfer(NamedTuple):
    """What becomes of a layer of the network: `given` is None where it keeps its initial weights, and `told` is why."""

    given: SourceLayer | None
    told: str = ""


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold weights, in the order of the data, named as in vggexp.models.shapes: block1.conv1, ..., output."""
    found: dict[str, nn.Module] = {}
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    block = 1
    place = 0
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            place += 1
            found[f"block{block}.conv{place}"] = module
        elif isinstance(module, nn.BatchNorm2d):
            found[f"block{block}.norm{place}"] = module
        elif isinstance(module, nn.MaxPool2d):
            block = block + 1
            place = 0
    return found | dict(zip(linear_names(len(linear)), linear, strict=True))


def linear_names(count: int) -> list[str]:
    """hidden1, hidden2, ..., output: the linear layers."""
    return [f"hidden{number}" for number in range(1, count)] + ["output"] * bool(count)


def source_layers(model: nn.Module) -> dict[str, SourceLayer]:
    """A whole network as a source."""
    return {
        name: SourceLayer(name, module.state_dict()) for name, module in named_layers(model).items()
    }


def plan_transfer(model: nn.Module, source: Mapping[str, SourceLayer]) -> dict[str, LayerTransfer]:
    """Each layer of `net` with what it takes.

    Between networks with the same convolutions, all of them; else the source's first four, each to the same place of
    the same block, since the fourth of a deeper net in the order of the data has another shape. Their batch norms go
    with them. Linear layers where the shapes agree. Raises CheckpointError where a convolution does not fit.
    """
    here = named_layers(model)
    theirs = [name for name in source if ".conv" in name]
    same = theirs == [name for name in here if ".conv" in name]
    taken = set(theirs if same else theirs[:FIRST])
    if absent := sorted(taken - here.keys()):
        raise CheckpointError(
            f"{absent[0]}: this network has no such layer; begin from a shallower one"
        )
    return {name: _fate(name, module, source.get(name), taken) for name, module in here.items()}


def _fate(
    name: str, module: nn.Module, given: SourceLayer | None, taken: set[str]
) -> LayerTransfer:
    if given is None or (".conv" in name and name not in taken):
        return LayerTransfer(None)
    if ".norm" in name and name.replace("norm", "conv") not in taken:
        return LayerTransfer(None)
    grey = _needs_channel_sum(module, given)
    if grey:
        given = given._replace(
            tensors={**given.tensors, "weight": given.tensors["weight"].sum(1, keepdim=True)}
        )
    problem = shape_mismatch(module, given)
    if not problem:
        return LayerTransfer(given, "its input channels summed" if grey else "")
    if isinstance(module, nn.Linear):
        return LayerTransfer(None, problem)
    raise CheckpointError(f"{name}: {problem}")


def _needs_channel_sum(module: nn.Module, given: SourceLayer) -> bool:
    """Whether the network sees one channel where the source saw several: equal channels, so their weights add up."""
    weight = given.tensors.get("weight")
    one = isinstance(module, nn.Conv2d) and module.in_channels == 1
    return one and weight is not None and weight.ndim == 4 and weight.shape[1] > 1


def shape_mismatch(module: nn.Module, given: SourceLayer) -> str:
    """The first tensor whose shape differs, or nothing. Counters have no shape, and old files lack them."""
    ours, theirs = (
        {name: format_shape(part) for name, part in of.items() if part.ndim}
        for of in (module.state_dict(), given.tensors)
    )
    for name in {**ours, **theirs}:
        if ours.get(name) != theirs.get(name):
            return f"{name} {theirs.get(name, 'none')} there ({given.name}), {ours.get(name, 'none')} here"
    return ""


def format_shape(tensor: Tensor) -> str:
    """`64x3x3x3`."""
    return "x".join(map(str, tensor.shape))


def load_layers(model: nn.Module, fates: Mapping[str, LayerTransfer]) -> None:
    """Copies what is taken into `net`, wherever it is; all other weights stay as they are."""
    for name, module in named_layers(model).items():
        given = fates[name].given
        if given is not None:
            module.load_state_dict(dict(given.tensors))


def describe_transfer(fates: Mapping[str, LayerTransfer]) -> Iterator[tuple[str, str]]:
    """A line for each block and for the classifier: `block3`, `conv1 <- features.6, conv2 new`."""
    for part, names in groupby(
        fates, lambda name: name.partition(".")[0] if "." in name else "classifier"
    ):
        yield (
            part,
            ", ".join(_describe_layers(name.rpartition(".")[2], fates[name]) for name in names),
        )


def _describe_layers(name: str, fate: LayerTransfer) -> str:
    said = f"{name} new" if fate.given is None else f"{name} <- {fate.given.name}"
    return f"{said} ({fate.told})" if fate.told else said


def in_first_blocks(names: Iterable[str], blocks: int) -> list[str]:
    firsts = tuple(f"block{number}." for number in range(1, blocks + 1))
    return [name for name in names if name.startswith(firsts)]


def freeze(model: nn.Module, blocks: int) -> None:
    """The layers of the first `blocks` get no gradient, and so neither an update nor weight decay."""
    layers = named_layers(model)
    for name in in_first_blocks(layers, blocks):
        layers[name].requires_grad_(False)


def train_mode(model: nn.Module) -> None:
    """Train mode, but a frozen batch norm normalises by the mean and deviation that it came with, and keeps them."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.weight.requires_grad:
            module.eval()
