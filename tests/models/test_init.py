"""Initial weights against the formulas of their sources."""

import math

import pytest
import torch
from torch import nn

from vggexp.models.init import INITIALIZERS, initialize
from vggexp.models.vgg import vgg_block


def make_model(init: str, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(*vgg_block(1, 128, 64, norm="batch"), nn.Linear(512, 300))
    initialize(model, init, seed)
    return model


@pytest.mark.parametrize("init", INITIALIZERS)
def test_statistics(init):
    model = make_model(init)
    for layer, fan_in, fan_out in ((model[0], 64 * 9, 128 * 9), (model[-1], 512, 300)):
        weight = layer.weight
        bound = math.sqrt(6 / (fan_in + fan_out))
        stds = {"kaiming": math.sqrt(2 / fan_in), "xavier": bound / math.sqrt(3), "paper": 0.1}
        std = stds[init]
        assert weight.std().item() == pytest.approx(std, rel=0.01)
        assert abs(weight.mean().item()) < 4 * std / math.sqrt(weight.numel())
        # The kurtosis is 3 for a normal distribution and 1.8 for a uniform one.
        kurtosis = (weight / std).pow(4).mean().item()
        assert kurtosis == pytest.approx(1.8 if init == "xavier" else 3, rel=0.05)
        if init == "xavier":
            assert weight.abs().max() <= bound
            assert weight.abs().max() > 0.999 * bound


@pytest.mark.parametrize("init", INITIALIZERS)
def test_biases_are_zero_and_batch_norm_is_the_identity(init):
    model = make_model(init)
    assert not any(layer.bias.any() for layer in model if hasattr(layer, "bias"))
    assert (model[1].weight == 1).all()


@pytest.mark.parametrize("init", INITIALIZERS)
def test_only_the_seed_decides(init):
    models = []
    for torch_seed in (1, 2):
        model = make_model(init)
        torch.manual_seed(torch_seed)
        before = torch.get_rng_state()
        initialize(model, init, seed=5)
        assert torch.equal(torch.get_rng_state(), before)
        models.append(model)
    first, second = models
    assert torch.equal(first[-1].weight, second[-1].weight)
    assert not torch.equal(first[-1].weight, make_model(init, seed=6)[-1].weight)
