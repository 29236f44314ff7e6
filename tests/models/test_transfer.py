"""Which layer takes which weights: the paper's way from A to B..E, torchvision's files, grey input; and freezing."""

from itertools import pairwise

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from vggexp.errors import CheckpointError
from vggexp.models import shapes
from vggexp.models.classic import alexnet, lenet
from vggexp.models.init import initialize
from vggexp.models.shapes import Block
from vggexp.models.torchvision import layers_in, save_torchvision_weights
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

ROWS = {
    "11": ([1, 1, 2, 2, 2], 0),
    "13": ([2] * 5, 0),
    "16c": ([2, 2, 3, 3, 3], 1),
    "16": ([2, 2, 3, 3, 3], 0),
    "19": ([2, 2, 4, 4, 4], 0),
}
LETTERS = {11: "A", 13: "B", 16: "D", 19: "E"}
BLOCKS = {
    name: [Block(count, 64 * 2 ** min(i, 3), one * (i > 1)) for i, count in enumerate(counts)]
    for name, (counts, one) in ROWS.items()
}


def ours(
    depth="11",
    seed=0,
    norm="none",
    in_channels=3,
    classes=7,
    size=32,
    width=1 / 32,
    hidden=(24, 24),
):
    made = vgg(
        BLOCKS[depth],
        norm=norm,
        hidden=hidden,
        dropout=0.5,
        width=width,
        in_channels=in_channels,
        size=size,
        classes=classes,
    )
    initialize(made, "kaiming", seed)
    return made


class Theirs(nn.Module):
    """torchvision's VGG with a thirty-second of its channels and a small classifier, under its names."""

    def __init__(self, depth: int, norm: bool, side: int = 7):
        super().__init__()
        torch.manual_seed(depth)
        self.features = make_layers(
            [step if step == "M" else step // 32 for step in cfgs[LETTERS[depth]]], norm
        )
        between = [nn.ReLU(), nn.Dropout()]
        widths = (16 * side * side, 24, 24, 7)
        first, second, last = (nn.Linear(*pair) for pair in pairwise(widths))
        self.classifier = nn.Sequential(first, *between, second, *between, last)
        with torch.device("meta"):
            real = getattr(torchvision.models, f"vgg{depth}{'_bn' * norm}")()
        assert list(self.state_dict()) == list(real.state_dict())
        for tensor in self.state_dict().values():  # also what batch norm has counted and learnt
            tensor.copy_(
                torch.rand(tensor.shape) if tensor.is_floating_point() else torch.tensor(9)
            )


def taken(model, source):
    """Fills the network; the names of the layers that took something."""
    fates = plan_transfer(model, source)
    load_layers(model, fates)
    return [name for name, fate in fates.items() if fate.given is not None]


def equal(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in mine)


@pytest.mark.parametrize("norm", ["none", "batch", "lrn"])
@pytest.mark.parametrize("depth", ROWS)
def test_names_are_those_of_the_table(depth, norm):
    rows = shapes.vgg_layers(
        BLOCKS[depth], norm, (24, 24), 1 / 32, in_channels=3, size=32, classes=7
    )
    assert list(named_layers(ours(depth, norm=norm))) == [
        row.name for row in rows if row.parameters
    ]


def test_names_of_the_other_networks():
    facts = {"in_channels": 1, "classes": 10}
    for model, rows in (
        (lenet(size=28, **facts), shapes.lenet_layers(size=28, **facts)),
        (alexnet(dropout=0, size=63, **facts), shapes.alexnet_layers(size=63, **facts)),
    ):
        assert list(named_layers(model)) == [row.name for row in rows if row.parameters]


PAPER = ["block1.conv1", "block2.conv1", "block3.conv1", "block3.conv2"]
HEAD = ["hidden1", "hidden2", "output"]


@pytest.mark.parametrize("depth", ["13", "16c", "16", "19"])
def test_the_papers_way_to_a_deeper_net(depth):
    """Section 3.1: the first four convolutions and the fully connected layers of A; what is between stays random."""
    model, before, source = ours(depth, 1), ours(depth, 1), ours("11", 2)
    assert taken(model, source_layers(source)) == [*PAPER, *HEAD]
    here, there = named_layers(model), named_layers(source)
    for name, module in here.items():
        assert equal(
            module, there[name] if name in [*PAPER, *HEAD] else named_layers(before)[name]
        ), name


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("depth", LETTERS)
def test_a_file_of_torchvision(depth, norm):
    model, theirs = (
        ours(str(depth), norm="batch" if norm else "none", size=224),
        Theirs(depth, norm),
    )
    assert taken(model, layers_in(theirs.state_dict())) == list(named_layers(model))
    saved = save_torchvision_weights(model)
    assert saved.keys() == theirs.state_dict().keys()
    assert all(torch.equal(saved[name], tensor) for name, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("depth", ["13", "16", "19"])
def test_a_deeper_net_from_a_file_of_torchvision(depth):
    model, theirs = ours(depth, size=224), Theirs(11, False)
    assert taken(model, layers_in(theirs.state_dict())) == [*PAPER, *HEAD]
    assert torch.equal(
        model[0][2][2].weight, theirs.features[8].weight
    )  # block3.conv2, the fourth of A


def test_grey_input_is_the_sum_of_the_channels():
    model, colour = ours(in_channels=1, seed=1).eval(), ours(seed=2).eval()
    assert len(taken(model, source_layers(colour))) == 11
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(
        model(grey), colour(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5
    )
    assert (
        "conv1 <- block1.conv1 (its input channels summed)"
        in dict(describe_transfer(plan_transfer(model, source_layers(colour))))["block1"]
    )


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (
            {"classes": 5},
            "hidden1 <- hidden1, hidden2 <- hidden2, output new (weight 7x24 there (output), 5x24 here)",
        ),
        (
            {"size": 64},
            "hidden1 new (weight 24x16 there (hidden1), 24x64 here), hidden2 <- hidden2, output <- output",
        ),
        ({"hidden": ()}, "output new (weight 7x24 there (output), 7x16 here)"),
    ],
)
def test_a_new_head_is_said(target, expected):
    assert (
        dict(describe_transfer(plan_transfer(ours(**target), source_layers(ours()))))["classifier"]
        == expected
    )


def test_batch_norms_go_with_their_convolutions():
    plain, normed = ours("11"), ours("11", norm="batch")
    norms = [name for name in named_layers(normed) if "norm" in name]
    assert taken(ours("16", norm="batch"), source_layers(normed))[:4] == [
        *"block1.conv1 block1.norm1".split(),
        *"block2.conv1 block2.norm1".split(),
    ]
    assert not set(taken(ours("11", norm="batch"), source_layers(plain))) & set(norms)
    assert (
        "conv1 <- block1.conv1, norm1 new"
        in dict(describe_transfer(plan_transfer(normed, source_layers(plain))))["block1"]
    )


@pytest.mark.parametrize(
    ("target", "source", "expected"),
    [
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
def test_what_does_not_fit_is_refused(target, source, expected):
    model = ours(**target)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError) as refused:
        taken(model, source_layers(ours(**source)))
    assert str(refused.value) == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ({}, "holds no weights in torchvision's naming"),
        ([torch.zeros(1)], "holds no weights in torchvision's naming"),
        ({"net": {}}, "'net' is no tensor of torchvision's VGG, as features.0.weight is"),
        ({"features.0.weight": 1}, "'features.0.weight' is no tensor"),
        ({"conv1.weight": torch.zeros(1)}, "'conv1.weight' is no tensor"),
        ({7: torch.zeros(1)}, "'7' is no tensor"),
        ({"features.0.bias": torch.zeros(1)}, "holds no weights in torchvision's naming"),
        ({"classifier.0.weight": torch.zeros(1)}, "holds no weights in torchvision's naming"),
    ],
)
def test_a_file_of_something_else(weights, expected):
    with pytest.raises(CheckpointError, match=expected):
        layers_in(weights)


def test_frozen_blocks_do_not_move():
    """Not by gradient, not by weight decay, not by momentum, not by batch norm's statistics."""
    model = ours("11", norm="batch")
    freeze(model, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    update = build_optimizer("SGD", model, 0.1, 0.1, {"momentum": 0.9})
    for _ in range(2):
        train_mode(model)
        nn.functional.cross_entropy(model(torch.rand(8, 3, 32, 32)), torch.arange(8) % 7).backward()
        update.step()
    moved = {
        name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])
    }
    assert {name for name in before if name.startswith(("0.0.", "0.1."))}.isdisjoint(moved)
    assert {
        name
        for name in before
        if name.startswith(("0.2.", "0.3.", "0.4.", "2.")) and "bias" not in name
    } <= moved
    assert [
        module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d)
    ] == [False] * 2 + [True] * 6
