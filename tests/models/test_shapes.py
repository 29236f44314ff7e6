"""Shape arithmetic against published numbers and against models that torch builds."""

import random

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vggexp.models import shapes
from vggexp.models.classic import alexnet, lenet
from vggexp.models.shapes import ALEXNET, LENET, Block, vgg_layers, vgg_spatial_ops
from vggexp.models.vgg import vgg

HIDDEN = (4096, 4096)


def make_blocks(*convs: int, pointwise: int = 0) -> tuple[Block, ...]:
    channels = (64, 128, 256, 512, 512)
    return tuple(
        Block(count, channels[index], pointwise if index > 1 else 0)
        for index, count in enumerate(convs)
    )


PAPER = {
    "A": make_blocks(1, 1, 2, 2, 2),
    "B": make_blocks(2, 2, 2, 2, 2),
    "C": make_blocks(2, 2, 3, 3, 3, pointwise=1),
    "D": make_blocks(2, 2, 3, 3, 3),
    "E": make_blocks(2, 2, 4, 4, 4),
}


# torchvision's num_params and _ops for A, B, D and E, without and with batch norm; C by hand.
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
    parameters = {"none": plain, "lrn": plain, "batch": batch}
    for norm, expected in parameters.items():
        layers = vgg_layers(PAPER[name], norm, HIDDEN, 1.0, in_channels=3, size=224, classes=1000)
        assert shapes.parameters(layers) == expected
        assert shapes.weight_layers(layers) == depth
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
    layers = vgg_layers(PAPER[name], "none", HIDDEN, width, in_channels=1, size=size, classes=10)
    assert shapes.parameters(layers) == parameters
    assert round(shapes.macs(layers) / 1e9, 3) == gmac


def test_classic_networks():
    assert shapes.parameters(shapes.lenet_layers(in_channels=1, size=28, classes=10)) == 61_706
    layers = shapes.alexnet_layers(in_channels=3, size=224, classes=1000)
    assert shapes.parameters(layers) == 61_100_840  # torchvision's num_params
    assert round(shapes.macs(layers) / 1e9, 3) == 0.714  # torchvision's _ops


def test_names_and_shapes():
    blocks = [Block(2, 8, 1), Block(1, 0)]
    layers = vgg_layers(blocks, "batch", (5,), 1.0, in_channels=3, size=7, classes=4)
    assert [layer.name for layer in layers] == [
        "block1.conv1",
        "block1.norm1",
        "block1.conv2",
        "block1.norm2",
        "block1.pool",
        "block2.conv1",
        "block2.norm1",
        "block2.pool",
        "hidden1",
        "output",
    ]
    outputs = [layer.output for layer in layers if layer.kind == "pool"]
    assert [layer.kernel for layer in layers if layer.kind == "conv"] == [3, 1, 3]
    assert outputs == [(8, 3, 3), (1, 1, 1)]  # a block has at least one channel


VGG11_OPS = vgg_spatial_ops(PAPER["A"])
SIZES = [  # windows, image size, message
    (VGG11_OPS, 16, "too small for 5 poolings (16->8->4->2->1->0); at least 32"),
    (VGG11_OPS, 28, "too small for 5 poolings (28->14->7->3->1->0); at least 32"),
    (VGG11_OPS, 8, "too small for 5 poolings (8->4->2->1->0); at least 32"),
    (LENET, 8, "too small for 2 poolings (8->4->0); at least 12"),
    (ALEXNET, 32, "too small for 3 poolings (32->7->3->1->0); at least 63"),
]


@pytest.mark.parametrize(("ops", "size", "message"), SIZES)
def test_the_message_for_a_small_image(ops, size, message):
    assert shapes.size_problem(size, ops) == message


@pytest.mark.parametrize(
    "ops", [VGG11_OPS, LENET, ALEXNET, vgg_spatial_ops([Block(1, 1)] * 40)], ids=len
)
def test_the_minimum_size(ops):
    minimum = shapes.minimum_size(ops)
    assert shapes.size_problem(minimum, ops) is None
    assert shapes.size_problem(minimum - 1, ops) is not None
    for map_size in (1, 2, 3, 7):
        size = shapes.minimum_size(ops, map_size)
        assert shapes.feature_map_sizes(size, ops)[-1] == map_size
        assert shapes.feature_map_sizes(size - 1, ops)[-1] < map_size


def test_a_small_image_is_refused():
    with pytest.raises(ValueError, match="at least 32"):
        vgg_layers(PAPER["A"], "none", HIDDEN, 1.0, in_channels=1, size=28, classes=10)


def storage_id(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def measure_model(build, shape) -> tuple[int, int, int]:
    """Returns parameters, MACs and elements kept for backward of one image, on the meta device."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dtype != torch.int64:  # pooling indices and the label are counted elsewhere
            kept[storage_id(tensor)] = tensor
        return tensor

    with torch.device("meta"):
        model = build()
        image = torch.empty(1, *shape)
        label = torch.zeros(1, dtype=torch.int64)
        with (
            FlopCounterMode(display=False) as counter,
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        ):
            torch.nn.functional.cross_entropy(model(image), label)
    for tensor in (*model.parameters(), *model.buffers()):
        kept.pop(storage_id(tensor), None)
    elements = 0
    for tensor in kept.values():
        elements += tensor.untyped_storage().nbytes() // tensor.element_size()
    parameters = sum(weight.numel() for weight in model.parameters())
    return parameters, counter.get_total_flops() // 2, elements


def draw_architecture(draws: random.Random) -> dict:
    blocks = []
    for _ in range(draws.randint(1, 4)):
        convs = draws.randint(1, 3)
        blocks.append(Block(convs, draws.randint(1, 9), draws.randint(0, convs)))
    return {
        "blocks": blocks,
        "norm": draws.choice(["none", "batch", "lrn"]),
        "hidden": [draws.randint(1, 20) for _ in range(draws.randint(0, 2))],
        "width": draws.choice([0.01, 0.25, 0.5, 1.0, 1.7]),
        "in_channels": draws.randint(1, 3),
        "size": draws.randint(1 << len(blocks), 40),
        "classes": draws.randint(2, 12),
    }


def seeds() -> list:
    """Returns the seeds of 200 networks, of which the quick tests have 40."""
    return [*range(40), *(pytest.param(seed, marks=pytest.mark.catalog) for seed in range(40, 200))]


@pytest.mark.parametrize("seed", seeds())
def test_a_random_network_is_what_torch_builds(seed):
    arch = draw_architecture(random.Random(seed))
    layers = vgg_layers(**arch)
    shape = (arch["in_channels"], arch["size"], arch["size"])
    parameters, macs, kept = measure_model(lambda: vgg(**arch, dropout=0.5), shape)
    assert shapes.parameters(layers) == parameters
    assert shapes.macs(layers) == macs
    assert sum(layer.activations for layer in layers) == kept - 1  # the loss keeps its divisor


@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize(
    ("build", "build_layers", "arguments"),
    [(lenet, shapes.lenet_layers, {}), (alexnet, shapes.alexnet_layers, {"dropout": 0.5})],
    ids=["lenet", "alexnet"],
)
def test_a_classic_network_is_what_torch_builds(build, build_layers, arguments, size):
    facts = {"in_channels": 3, "size": size, "classes": 10}
    parameters, macs, kept = measure_model(lambda: build(**facts, **arguments), (3, size, size))
    layers = build_layers(**facts)
    assert shapes.parameters(layers) == parameters
    assert shapes.macs(layers) == macs
    assert sum(layer.activations for layer in layers) == pytest.approx(kept, rel=0.02)
