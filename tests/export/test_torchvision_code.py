"""Networks that torchvision has, the code that builds them, and networks that it does not have."""

import pytest
import torch
from torch import nn

from vggexp.config.compose import parse_command
from vggexp.config.derived import input_spec
from vggexp.export.torchvision_code import torchvision_code, unsupported_reason
from vggexp.models.torchvision import save_torchvision_weights
from vggexp.runner import build
from vggexp.sweep.expand import compose_run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("vgg11", ["data=fashion_mnist", "arch.dropout=0"]),
        ("vgg11_bn", ["data=cifar10", "data.resize=64", "arch.hidden=[64,4096]"]),
        ("vgg13", ["data=cifar100", "data.resize=32", "arch.dropout=0.2"]),
        ("vgg13_bn", ["data=digits", "data.resize=32"]),
        ("vgg16", ["data=cifar10", "data.resize=224"]),
        ("vgg16_bn", ["data=fashion_mnist", "data.resize=32"]),
        ("vgg19", ["data=mnist", "data.resize=32"]),
        ("vgg19_bn", ["data=image_folder", "data.classes=1000", "data.resize=null"]),
    ],
)
def test_torchvision_s_network_has_the_same_logits(arch, overrides, tmp_path):
    config = compose_run(parse_command([f"arch={arch}", *overrides]))
    model = build.build_model(config).eval()
    for module in model.modules():  # without this, all batch norms would be equal
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    path = tmp_path / "twin.pth"
    torch.save(save_torchvision_weights(model), path)
    code = torchvision_code(config, str(path))
    scope = {}
    exec("\n".join(code), scope)
    if arch in ("vgg16", "vgg19_bn"):  # color at 224 px: torchvision's network unchanged
        assert len(code) == 4
    else:
        assert len(code) > 4
    spec = input_spec(config)
    images = torch.randn(2, spec.channels, spec.size, spec.size)
    with torch.inference_mode():
        torch.testing.assert_close(scope["net"](images), model(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["arch=vgg11_lrn"], "no local response normalization"),
        (["arch=vgg16c"], "no 1x1 convolutions (configuration C)"),
        (["arch=vgg_digits"], "arch.blocks: not those of torchvision's"),
        (
            ["arch=vgg11", "arch.hidden=[64]"],
            "arch.hidden=[64]: torchvision's VGGs have two hidden layers",
        ),
        (["arch=lenet"], "arch=lenet: "),
        (["arch=alexnet"], "arch=alexnet: "),
        (["arch=vgg11", "arch.blocks=[[1,64],[1,128],[2,256],[2,512]]"], "arch.blocks: not those"),
    ],
)
def test_networks_that_torchvision_does_not_have(overrides, reason):
    assert reason in unsupported_reason(compose_run(parse_command(overrides)).arch)
