"""Initial weights against the formulas of their sources."""

import math

import pytest
import torch
from torch import nn

from vggexp.models.init import FILL, initialize
from vggexp.models.vgg import vgg_block


def network(init: str, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(*vgg_block(1, 128, 64, norm="batch"), nn.Linear(512, 300))
    initialize(model, init, seed)
    return model


@pytest.mark.parametrize("init", FILL)
def test_statistics(init):
    conv, norm, *_, linear = model = network(init)
    for layer, fan_in, fan_out in ((conv, 64 * 9, 128 * 9), (linear, 512, 300)):
        bound, weight = math.sqrt(6 / (fan_in + fan_out)), layer.weight
        deviation = {
            "kaiming": math.sqrt(2 / fan_in),
            "xavier": bound / math.sqrt(3),
            "paper": 0.1,
        }[init]
        assert weight.std().item() == pytest.approx(deviation, rel=0.01)
        assert abs(weight.mean().item()) < 4 * deviation / math.sqrt(weight.numel())
        kurtosis = (
            (weight / deviation).pow(4).mean().item()
        )  # 3 for a normal distribution, 1.8 for a uniform one
        assert kurtosis == pytest.approx(1.8 if init == "xavier" else 3, rel=0.05)
        assert init != "xavier" or 0.999 * bound < weight.abs().max() <= bound
    assert not any(layer.bias.any() for layer in model if hasattr(layer, "bias"))
    assert (norm.weight == 1).all()


@pytest.mark.parametrize("init", FILL)
def test_the_seed_alone_decides(init):
    nets = []
    for elsewhere in (1, 2):
        model = network(init)
        torch.manual_seed(elsewhere)
        before = torch.get_rng_state()
        initialize(model, init, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        nets.append(model)
    assert torch.equal(nets[0][-1].weight, nets[1][-1].weight)
    assert not torch.equal(nets[0][-1].weight, network(init, seed=6)[-1].weight)
