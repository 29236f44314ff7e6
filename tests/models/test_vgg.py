"""The model against table 1 of the paper, its formula of response norm, and torchvision's VGG."""

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


def make_meta_model(
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


def layer_types(block: nn.Sequential) -> str:
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
    model = make_meta_model(depth, pointwise=pointwise, facts=facts)
    assert sum(weight.numel() for weight in model.parameters()) == parameters
    assert sum(isinstance(layer, nn.Conv2d | nn.Linear) for layer in model.modules()) == depth


def test_a_block_halves_the_size():
    assert vgg_block(2, 128, 3)(torch.rand(2, 3, 16, 16)).shape == (2, 128, 8, 8)


@pytest.mark.parametrize(
    ("norm", "types"),
    [
        ("none", "Conv2d ReLU Conv2d MaxPool2d ReLU"),
        ("batch", "Conv2d BatchNorm2d ReLU Conv2d BatchNorm2d MaxPool2d ReLU"),
        ("lrn", "Conv2d ReLU LocalResponseNorm Conv2d MaxPool2d ReLU"),
    ],
)
def test_the_layers_of_a_block(norm, types):
    assert layer_types(vgg_block(2, 4, 3, norm=norm)) == types


def test_pointwise_convolutions_come_last():
    convs = [layer for layer in vgg_block(3, 4, 3, 2) if isinstance(layer, nn.Conv2d)]
    assert [conv.kernel_size for conv in convs] == [(3, 3), (1, 1), (1, 1)]
    assert [conv.padding for conv in convs] == [(1, 1), (0, 0), (0, 0)]


def test_response_normalization_comes_once_and_is_the_papers():
    first, second = vgg_stack([Block(1, 8), Block(2, 8)], 3, "lrn")
    assert layer_types(first) == "Conv2d ReLU LocalResponseNorm MaxPool2d"
    assert layer_types(second) == "Conv2d ReLU Conv2d MaxPool2d ReLU"
    maps = 50 * torch.rand(2, 8, 3, 3)
    sums = [maps[:, max(0, channel - 2) : channel + 3].square().sum(1) for channel in range(8)]
    torch.testing.assert_close(first[2](maps), maps / (2 + 1e-4 * torch.stack(sums, 1)) ** 0.75)


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_pooling_before_relu_is_pooling_after_it(norm):
    *body, pool, relu = vgg_block(2, 8, 3, norm=norm)
    images = torch.randn(4, 3, 9, 9, requires_grad=True)
    pool_first = nn.Sequential(*body, pool, relu)(images)
    relu_first = nn.Sequential(*body, relu, pool)(images)
    (pool_first_gradient,) = torch.autograd.grad(pool_first.square().sum(), images)
    (relu_first_gradient,) = torch.autograd.grad(relu_first.square().sum(), images)
    assert torch.equal(pool_first, relu_first)
    assert torch.equal(pool_first_gradient, relu_first_gradient)


def with_random_weights(model: nn.Module) -> nn.Module:
    """Tiles one random vector over all tensors, scaled so that the logits are of order one."""
    noise = torch.randn(999_983, generator=torch.Generator().manual_seed(0))
    for name, tensor in model.to_empty(device="cpu").state_dict().items():
        if not tensor.is_floating_point():
            tensor.fill_(7)  # the count of batches
            continue
        tiled = noise.repeat(-(-tensor.numel() // len(noise)))[: tensor.numel()].view_as(tensor)
        scale = (2 / tensor[0].numel()) ** 0.5 if tensor.dim() > 1 else 0.1
        tensor.copy_(0.5 + tiled.abs() if "running_var" in name else scale * tiled)
    return model.eval()


QUICK = [(11, ""), (11, "_bn"), (19, "")]
SLOW = [(13, ""), (13, "_bn"), (16, ""), (16, "_bn"), (19, "_bn")]


@pytest.mark.process
@pytest.mark.parametrize(
    ("depth", "norm"), [*QUICK, *(pytest.param(*model, marks=pytest.mark.slow) for model in SLOW)]
)
@torch.inference_mode()
def test_torchvisions_model_with_the_same_weights(depth, norm):
    build = getattr(torchvision.models, f"vgg{depth}{norm}")
    with torch.device("meta"):
        torchvision_model = build()
        loaded_model = build()
    weights = with_random_weights(torchvision_model).state_dict()
    model = make_meta_model(depth, "batch" if norm else "none").to_empty(device="cpu").eval()
    load_torchvision_weights(model, weights)
    images = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = torchvision_model(images)
    assert expected.std() > 0.1
    assert (model(images) - expected).abs().max() < 1e-4
    saved = save_torchvision_weights(model)
    loaded_model.load_state_dict(saved, strict=True, assign=True)
    assert list(saved) == list(weights)
    for name, tensor in weights.items():
        assert torch.equal(saved[name], tensor), name
