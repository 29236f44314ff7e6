"""Shape arithmetic against published numbers and against networks that torch builds."""

import random

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vggexp.models import shapes
from vggexp.models.classic import alexnet, lenet
from vggexp.models.shapes import ALEXNET, LENET, Block, vgg_layers, vgg_spatial_ops
from vggexp.models.vgg import vgg

HEAD = (4096, 4096)


def rows(*convs: int, pointwise: int = 0) -> tuple[Block, ...]:
    channels = (64, 128, 256, 512, 512)
    return tuple(
        Block(n, c, pointwise if i > 1 else 0)
        for i, (n, c) in enumerate(zip(convs, channels, strict=True))
    )


PAPER = {
    "A": rows(1, 1, 2, 2, 2),
    "B": rows(2, 2, 2, 2, 2),
    "C": rows(2, 2, 3, 3, 3, pointwise=1),
    "D": rows(2, 2, 3, 3, 3),
    "E": rows(2, 2, 4, 4, 4),
}


# torchvision's num_params and _ops for A, B, D, E and their _bn twins; C by hand.
@pytest.mark.parametrize(
    ("name", "depth", "plain", "batch", "gmac"),
    [
        ("A", 11, 132_863_336, 132_868_840, 7.609),
        ("B", 13, 133_047_848, 133_053_736, 11.308),
        ("C", 16, 133_638_952, 133_647_400, 11.771),
        ("D", 16, 138_357_544, 138_365_992, 15.470),
        ("E", 19, 143_667_240, 143_678_248, 19.632),
    ],
)
def test_paper_networks(name, depth, plain, batch, gmac):
    facts = {"none": plain, "lrn": plain, "batch": batch}
    for norm, expected in facts.items():
        layers = vgg_layers(PAPER[name], norm, HEAD, 1.0, in_channels=3, size=224, classes=1000)
        assert (shapes.parameters(layers), shapes.weight_layers(layers)) == (expected, depth)
        assert round(shapes.macs(layers) / 1e9, 3) == gmac


@pytest.mark.parametrize(
    ("name", "size", "width", "parameters", "gmac"),
    [
        ("A", 224, 1, 128_806_154, 7.547),
        ("A", 96, 1, 44_920_074, 1.400),
        ("A", 64, 1, 34_434_314, 0.632),
        ("A", 32, 1, 28_142_858, 0.171),
        ("B", 96, 1, 45_104_586, 2.079),
        ("C", 96, 1, 45_695_690, 2.164),
        ("D", 96, 1, 50_414_282, 2.844),
        ("E", 96, 1, 55_723_978, 3.608),
        ("E", 32, 1, 38_946_762, 0.416),
        ("A", 224, 0.25, 43_093_322, 0.512),
        ("A", 96, 0.25, 22_121_802, 0.108),
    ],
)
def test_one_channel_ten_classes(name, size, width, parameters, gmac):
    layers = vgg_layers(PAPER[name], "none", HEAD, width, in_channels=1, size=size, classes=10)
    assert shapes.parameters(layers) == parameters
    assert round(shapes.macs(layers) / 1e9, 3) == gmac


def test_classic_networks():
    assert shapes.parameters(shapes.lenet_layers(in_channels=1, size=28, classes=10)) == 61_706
    layers = shapes.alexnet_layers(in_channels=3, size=224, classes=1000)
    assert shapes.parameters(layers) == 61_100_840  # torchvision's num_params
    assert round(shapes.macs(layers) / 1e9, 3) == 0.714  # torchvision's _ops


def test_names_and_shapes():
    layers = vgg_layers(
        [Block(2, 8, 1), Block(1, 0)], "batch", (5,), 1.0, in_channels=3, size=7, classes=4
    )
    names = "block1.conv1 block1.norm1 block1.conv2 block1.norm2 block1.pool block2.conv1 block2.norm1 block2.pool"
    assert [layer.name for layer in layers] == [*names.split(), "hidden1", "output"]
    assert [layer.kernel for layer in layers if layer.kind == "conv"] == [3, 1, 3]
    assert [layer.output for layer in layers if layer.kind == "pool"] == [
        (8, 3, 3),
        (1, 1, 1),
    ]  # width: at least 1


@pytest.mark.parametrize(
    ("windows", "size", "text"),
    [
        (
            vgg_spatial_ops(PAPER["A"]),
            16,
            "too small for 5 poolings (16->8->4->2->1->0); at least 32",
        ),
        (
            vgg_spatial_ops(PAPER["A"]),
            28,
            "too small for 5 poolings (28->14->7->3->1->0); at least 32",
        ),
        (vgg_spatial_ops(PAPER["A"]), 8, "too small for 5 poolings (8->4->2->1->0); at least 32"),
        (LENET, 8, "too small for 2 poolings (8->4->0); at least 12"),
        (ALEXNET, 32, "too small for 3 poolings (32->7->3->1->0); at least 63"),
        (vgg_spatial_ops([Block(1, 1)] * 40), 4096, None),
    ],
)
def test_too_small(windows, size, text):
    minimum = shapes.minimum_size(windows)
    assert shapes.too_small(minimum, windows) is None
    assert shapes.too_small(minimum - 1, windows)
    assert text is None or shapes.too_small(size, windows) == text
    for side in (1, 2, 3, 7):
        least = shapes.minimum_size(windows, side)
        assert (
            shapes.feature_map_sizes(least, windows)[-1]
            == side
            > shapes.feature_map_sizes(least - 1, windows)[-1]
        )


def test_too_small_is_refused():
    with pytest.raises(ValueError, match="at least 32"):
        vgg_layers(PAPER["A"], "none", HEAD, 1.0, in_channels=1, size=28, classes=10)


def measured(build, shape) -> tuple[int, int, int]:
    """Parameters, MACs and elements kept for backward, for one image, on torch's meta device."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.int64:  # pooling indices and the label are counted apart
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        model = build()
        image, label = torch.empty(1, *shape), torch.zeros(1, dtype=torch.int64)
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
        ):
            torch.nn.functional.cross_entropy(model(image), label)
    weights = {
        tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())
    }
    elements = sum(
        t.untyped_storage().nbytes() // t.element_size()
        for key, t in kept.items()
        if key not in weights
    )
    return (
        sum(weight.numel() for weight in model.parameters()),
        counter.get_total_flops() // 2,
        elements,
    )


def architecture(draw: random.Random) -> dict:
    blocks = []
    for _ in range(draw.randint(1, 4)):
        convs = draw.randint(1, 3)
        blocks.append(Block(convs, draw.randint(1, 9), draw.randint(0, convs)))
    return {
        "blocks": blocks,
        "norm": draw.choice(["none", "batch", "lrn"]),
        "hidden": [draw.randint(1, 20) for _ in range(draw.randint(0, 2))],
        "width": draw.choice([0.01, 0.25, 0.5, 1.0, 1.7]),
        "in_channels": draw.randint(1, 3),
        "size": draw.randint(1 << len(blocks), 40),
        "classes": draw.randint(2, 12),
    }


@pytest.mark.parametrize("seed", range(200))
def test_a_random_network_is_what_torch_builds(seed):
    arch = architecture(random.Random(seed))
    layers = vgg_layers(**arch)
    shape = (arch["in_channels"], arch["size"], arch["size"])
    parameters, macs, kept = measured(lambda: vgg(**arch, dropout=0.5), shape)
    assert (shapes.parameters(layers), shapes.macs(layers)) == (parameters, macs)
    assert sum(layer.activations for layer in layers) == kept - 1  # the loss keeps its divisor


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (lenet, shapes.lenet_layers),
        (lambda **key: alexnet(dropout=0.5, **key), shapes.alexnet_layers),
    ],
)
def test_a_classic_network_is_what_torch_builds(build, layers, size):
    arch = {"in_channels": 3, "size": size, "classes": 10}
    parameters, macs, kept = measured(lambda: build(**arch), (3, size, size))
    table = layers(**arch)
    assert (shapes.parameters(table), shapes.macs(table)) == (parameters, macs)
    assert sum(layer.activations for layer in table) == pytest.approx(kept, rel=0.02)
