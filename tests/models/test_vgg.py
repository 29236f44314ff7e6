"""The network against the paper's table 1, the paper's formula for response normalisation, and torchvision's VGG."""

import pytest
import torch
import torchvision
from torch import nn

from vggexp.models.shapes import Block
from vggexp.models.torchvision import load_torchvision_weights, save_torchvision_weights
from vggexp.models.vgg import vgg, vgg_block, vgg_stack

CONVS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
PAPER = {"in_channels": 3, "size": 224, "classes": 1000}
SOURCE_RUN = {"in_channels": 1, "size": 96, "classes": 10}


def network(
    depth: int, norm: str = "none", pointwise: int = 0, facts: dict[str, int] = PAPER
) -> nn.Sequential:
    rows = zip(CONVS[depth], (64, 128, 256, 512, 512), (0, 0, *3 * [pointwise]), strict=True)
    with torch.device("meta"):
        return vgg(
            [Block(*row) for row in rows],
            norm=norm,
            hidden=(4096, 4096),
            dropout=0.5,
            width=1,
            **facts,
        )


def kinds(block: nn.Sequential) -> str:
    return " ".join(type(layer).__name__ for layer in block)


@pytest.mark.parametrize(
    ("depth", "pointwise", "facts", "parameters"),
    [
        (11, 0, PAPER, 132_863_336),
        (13, 0, PAPER, 133_047_848),
        (16, 1, PAPER, 133_638_952),
        (16, 0, PAPER, 138_357_544),
        (19, 0, PAPER, 143_667_240),
        (11, 0, SOURCE_RUN, 44_920_074),
    ],
)
def test_parameter_counts(depth, pointwise, facts, parameters):
    model = network(depth, pointwise=pointwise, facts=facts)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == depth


def test_a_block():
    assert vgg_block(2, 128, 3)(torch.rand(2, 3, 16, 16)).shape == (2, 128, 8, 8)
    assert kinds(vgg_block(2, 4, 3)) == "Conv2d ReLU Conv2d MaxPool2d ReLU"
    assert (
        kinds(vgg_block(2, 4, 3, norm="batch"))
        == "Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d MaxPool2d ReLU"
    )
    assert (
        kinds(vgg_block(2, 4, 3, norm="lrn"))
        == "Conv2d ReLU LocalResponseNorm Conv2d MaxPool2d ReLU"
    )
    kernels = [
        (layer.kernel_size, layer.padding)
        for layer in vgg_block(3, 4, 3, 2)
        if isinstance(layer, nn.Conv2d)
    ]
    assert kernels == [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((1, 1), (0, 0))]


def test_response_normalisation_stands_once_and_is_the_papers():
    first, second = vgg_stack([Block(1, 8), Block(2, 8)], 3, "lrn")
    assert kinds(first) == "Conv2d ReLU LocalResponseNorm MaxPool2d"
    assert kinds(second) == "Conv2d ReLU Conv2d MaxPool2d ReLU"
    maps = 50 * torch.rand(2, 8, 3, 3)
    sums = [maps[:, max(0, channel - 2) : channel + 3].square().sum(1) for channel in range(8)]
    torch.testing.assert_close(first[2](maps), maps / (2 + 1e-4 * torch.stack(sums, 1)) ** 0.75)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_pooling_before_relu_is_pooling_after_it(norm):
    *body, pool, relu = vgg_block(2, 8, 3, norm=norm)
    images = torch.randn(4, 3, 9, 9, requires_grad=True)
    both = [nn.Sequential(*body, *tail)(images) for tail in ((pool, relu), (relu, pool))]
    gradients = [torch.autograd.grad(output.square().sum(), images)[0] for output in both]
    assert torch.equal(*both)
    assert torch.equal(*gradients)


def with_random_weights(model: nn.Module) -> nn.Module:
    """One short random vector, tiled over all tensors and scaled so that the logits are of order one."""
    noise = torch.randn(999_983, generator=torch.Generator().manual_seed(0))
    for name, tensor in model.to_empty(device="cpu").state_dict().items():
        if tensor.is_floating_point():
            tiled = noise.repeat(-(-tensor.numel() // len(noise)))[: tensor.numel()].view_as(tensor)
            scale = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.1
            tensor.copy_(0.5 + tiled.abs() if "running_var" in name else scale * tiled)
        else:
            tensor.fill_(7)  # batches seen
    return model.eval()


QUICK = [(11, ""), (11, "_bn"), (19, "")]
SLOW = [(13, ""), (13, "_bn"), (16, ""), (16, "_bn"), (19, "_bn")]


@pytest.mark.parametrize(
    ("depth", "norm"), [*QUICK, *(pytest.param(*model, marks=pytest.mark.slow) for model in SLOW)]
)
@torch.inference_mode()
def test_torchvisions_network_with_the_same_weights(depth, norm):
    build = getattr(torchvision.models, f"vgg{depth}{norm}")
    with torch.device("meta"):
        theirs, again = build(), build()
    ours = network(depth, "batch" if norm else "none").to_empty(device="cpu").eval()
    weights = with_random_weights(theirs).state_dict()
    load_torchvision_weights(ours, weights)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = theirs(images)
    assert expected.std() > 0.1
    assert (ours(images) - expected).abs().max() < 1e-4
    saved = save_torchvision_weights(ours)
    again.load_state_dict(saved, strict=True, assign=True)
    assert list(saved) == list(weights)
    assert all(torch.equal(saved[name], weights[name]) for name in weights)
