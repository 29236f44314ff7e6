"""Which layer takes which weights: the paper's way from A to B..E and gray input; and freezing."""

import pytest
import torch
from torch import nn

from vggexp.errors import CheckpointError
from vggexp.models import shapes
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.shapes import Block
from vggexp.models.transfer import (
    describe_transfer,
    freeze,
    load_layers,
    named_layers,
    plan_transfer,
    source_layers,
    train_mode,
)
from vggexp.models.vgg import vgg
from vggexp.training.optimizers import build_optimizer

CHANNELS = (64, 128, 256, 512, 512)
BLOCKS = {
    "11": [Block(*row) for row in zip((1, 1, 2, 2, 2), CHANNELS, strict=True)],
    "13": [Block(*row) for row in zip((2, 2, 2, 2, 2), CHANNELS, strict=True)],
    "16c": [Block(*row) for row in zip((2, 2, 3, 3, 3), CHANNELS, (0, 0, 1, 1, 1), strict=True)],
    "16": [Block(*row) for row in zip((2, 2, 3, 3, 3), CHANNELS, strict=True)],
    "19": [Block(*row) for row in zip((2, 2, 4, 4, 4), CHANNELS, strict=True)],
}
FEATURES = ["block1.conv1", "block2.conv1", "block3.conv1", "block3.conv2"]
CLASSIFIER = ["hidden1", "hidden2", "output"]


def make_vgg(depth="11", seed=0, **overrides):
    """Returns a VGG with a thirty-second of the paper's channels and a small classifier."""
    arguments = {
        "norm": "none",
        "hidden": (24, 24),
        "dropout": 0.5,
        "width": 1 / 32,
        "in_channels": 3,
        "size": 32,
        "classes": 7,
    }
    model = vgg(BLOCKS[depth], **arguments | overrides)
    initialize(model, "kaiming", seed)
    return model


def transfer(model, source):
    """Fills the model and returns the names of the layers that took weights."""
    transfers = plan_transfer(model, source)
    load_layers(model, transfers)
    return [name for name, plan in transfers.items() if plan.source is not None]


def describe(model, source):
    return dict(describe_transfer(plan_transfer(model, source_layers(source))))


def assert_equal(module: nn.Module, expected: nn.Module, name: str) -> None:
    tensors = module.state_dict()
    expected_tensors = expected.state_dict()
    assert tensors.keys() == expected_tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(tensor, expected_tensors[key]), (name, key)


@pytest.mark.parametrize("norm", ["none", "batch", "lrn"])
@pytest.mark.parametrize("depth", BLOCKS)
def test_names_are_those_of_the_table(depth, norm):
    layers = shapes.vgg_layers(
        BLOCKS[depth], norm, (24, 24), 1 / 32, in_channels=3, size=32, classes=7
    )
    expected = [layer.name for layer in layers if layer.parameters]
    assert list(named_layers(make_vgg(depth, norm=norm))) == expected


CLASSIC = {"in_channels": 1, "classes": 10}


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (lenet(size=28, **CLASSIC), shapes.lenet_layers(size=28, **CLASSIC)),
        (alexnet(dropout=0, size=63, **CLASSIC), shapes.alexnet_layers(size=63, **CLASSIC)),
    ],
    ids=["lenet", "alexnet"],
)
def test_names_of_the_classic_networks(model, layers):
    assert list(named_layers(model)) == [layer.name for layer in layers if layer.parameters]


@pytest.mark.parametrize("depth", ["13", "16c", "16", "19"])
def test_the_papers_way_to_a_deeper_network(depth):
    """Section 3.1: the first four convolutions and the fully connected layers come from A."""
    model = make_vgg(depth, 1)
    initial_layers = named_layers(make_vgg(depth, 1))
    source = make_vgg("11", 2)
    taken = transfer(model, source_layers(source))
    assert taken == [*FEATURES, *CLASSIFIER]
    for name, module in named_layers(model).items():
        expected = named_layers(source)[name] if name in taken else initial_layers[name]
        assert_equal(module, expected, name)


def test_gray_input_takes_the_sum_of_the_channels():
    model = make_vgg(in_channels=1, seed=1).eval()
    color_model = make_vgg(seed=2).eval()
    assert len(transfer(model, source_layers(color_model))) == 11
    images = torch.rand(2, 1, 32, 32)
    expected = color_model(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    text = describe(model, color_model)["block1"]
    assert "conv1 <- block1.conv1 (its input channels summed)" in text


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"classes": 5},
            "hidden1 <- hidden1, hidden2 <- hidden2, "
            "output new (weight 7x24 there (output), 5x24 here)",
        ),
        (
            {"size": 64},
            "hidden1 new (weight 24x16 there (hidden1), 24x64 here), "
            "hidden2 <- hidden2, output <- output",
        ),
        ({"hidden": ()}, "output new (weight 7x24 there (output), 7x16 here)"),
    ],
)
def test_a_new_classifier_is_described(overrides, expected):
    assert describe(make_vgg(**overrides), make_vgg())["classifier"] == expected


def test_batch_norms_go_with_their_convolutions():
    normed = make_vgg("11", norm="batch")
    deeper = make_vgg("16", norm="batch")
    assert transfer(deeper, source_layers(normed))[:4] == [
        "block1.conv1",
        "block1.norm1",
        "block2.conv1",
        "block2.norm1",
    ]


def test_batch_norms_of_a_source_without_them_stay_new():
    plain = make_vgg("11")
    normed = make_vgg("11", norm="batch")
    assert "conv1 <- block1.conv1, norm1 new" in describe(normed, plain)["block1"]
    taken = transfer(normed, source_layers(plain))
    assert not [name for name in taken if "norm" in name]


@pytest.mark.parametrize(
    ("overrides", "source_overrides", "expected"),
    [
        (
            {},
            {"norm": "batch"},
            "block1.norm1: this network has no such layer, and block1.conv1 was trained with it; "
            "set arch.norm=batch",
        ),
        (
            {},
            {"depth": "16"},
            "block1.conv2: this network has no such layer; begin from a shallower one",
        ),
        ({"width": 1 / 16}, {}, "block1.conv1: weight 2x3x3x3 there (block1.conv1), 4x3x3x3 here"),
        (
            {"depth": "16"},
            {"depth": "16c"},
            "block3.conv3: weight 8x8x1x1 there (block3.conv3), 8x8x3x3 here",
        ),
        ({}, {"in_channels": 1}, "block1.conv1: weight 2x1x3x3 there (block1.conv1), 2x3x3x3 here"),
    ],
)
def test_a_convolution_that_does_not_fit_is_refused(overrides, source_overrides, expected):
    model = make_vgg(**overrides)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as raised:
        transfer(model, source_layers(make_vgg(**source_overrides)))
    assert str(raised.value) == expected
    for name, tensor in model.state_dict().items():
        assert torch.equal(before[name], tensor), name


@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_weights_that_are_not_finite_are_refused(value):
    source = make_vgg()
    with torch.no_grad():
        source[0][0][0].bias[1] = value
    with pytest.raises(CheckpointError, match=r"^block1\.conv1\.bias holds NaN or infinity$"):
        transfer(make_vgg(seed=1), source_layers(source))


def test_frozen_blocks_do_not_move():
    """Neither the gradient nor weight decay, momentum or batch norm's statistics move them."""
    model = make_vgg("11", norm="batch")
    freeze(model, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = build_optimizer("SGD", model, 0.1, 0.1, {"momentum": 0.9})
    for _ in range(2):
        train_mode(model)
        logits = model(torch.rand(8, 3, 32, 32))
        nn.functional.cross_entropy(logits, torch.arange(8) % 7).backward()
        optimizer.step()
    for name, tensor in model.state_dict().items():
        is_frozen = name.startswith(("0.0.", "0.1."))
        if is_frozen:
            assert torch.equal(tensor, before[name]), name
        elif "bias" not in name:
            assert not torch.equal(tensor, before[name]), name
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.training for norm in norms] == [False] * 2 + [True] * 6
