"""Initial weights against the formulas of their sources."""

import math

import pytest
import scipy.fft
import torch
from torch import nn

from vggexp.models.init import INITIALIZERS, cosines, initialize, see_cosines
from vggexp.models.vgg import vgg_block

POSITIONS = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))


def make_model(init: str, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(*vgg_block(1, 128, 64, norm="batch"), nn.Linear(512, 300))
    initialize(model, init, seed)
    return model


@pytest.mark.parametrize("init", ["kaiming", "xavier", "paper"])
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


def test_dirac_passes_the_input_on():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 1))
    random = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 5, 1))
    initialize(model, "dirac", seed=3)
    initialize(random, "kaiming", seed=3)
    see_cosines(random[0].weight)
    assert torch.equal(model[0].weight, random[0].weight)
    images = torch.rand(2, 4, 8, 8)
    assert torch.equal(model[1](images)[:, :4], images)
    assert torch.equal(model[1].weight[4:], random[1].weight[4:])
    maps = torch.rand(2, 6, 8, 8)
    assert torch.equal(model[2](maps), maps[:, :5])


@pytest.mark.parametrize("length", [1, 2, 3, 5])
def test_cosines_are_those_of_scipy(length):
    expected = scipy.fft.dct(torch.eye(length, dtype=torch.float64), axis=0, norm="ortho")
    torch.testing.assert_close(cosines(length), torch.tensor(expected).float())


def test_the_first_convolution_sees_low_frequencies_first():
    weight = torch.full((20, 1, 3, 3), 7.0)
    see_cosines(weight)
    patterns = weight[:18].flatten(1) / math.sqrt(2)
    torch.testing.assert_close(patterns[:9] @ patterns[:9].T, torch.eye(9))
    assert torch.equal(patterns[9:], -patterns[:9])
    torch.testing.assert_close(patterns[0], torch.full((9,), 1 / 3))
    assert torch.equal(weight[18:], torch.full((2, 1, 3, 3), 7.0))
    few = torch.zeros(5, 1, 3, 3)
    see_cosines(few)
    assert torch.equal(few[:2], weight[:2])
    assert torch.equal(few[2:4], -weight[:2])
    assert not few[4].any()


def test_cosines_nearly_whiten_pictures():
    """Pixels whose correlation falls with their distance, as in photographs."""
    distance = torch.cdist(POSITIONS, POSITIONS, p=1)
    covariance = 0.9**distance
    weight = torch.zeros(18, 1, 3, 3)
    see_cosines(weight)
    patterns = weight[:9].flatten(1) / math.sqrt(2)
    seen = patterns @ covariance @ patterns.T
    correlation = seen / torch.outer(seen.diag(), seen.diag()).sqrt()
    assert (correlation - torch.eye(9)).abs().max() < 0.2
