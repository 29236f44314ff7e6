"""Initial weights. Every bias starts at zero, every batch norm at the identity."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vggexp.rng import generator

KAIMING = partial(nn.init.kaiming_normal_, nonlinearity="relu")
# kaiming: He et al. 2015, arXiv:1502.01852, N(0, 2 / fan_in).
# xavier: Glorot and Bengio 2010, uniform with bound sqrt(6 / (fan_in + fan_out)), the same as
# Gluon's init.Xavier().
# paper: Simonyan and Zisserman 2015, section 3.1, N(0, variance 1e-2), so the std is 0.1.
# dirac: kaiming, of which `pass_channels_on` and `see_cosines` replace a part.
INITIALIZERS: dict[str, Callable[..., Any]] = {
    "kaiming": KAIMING,
    "xavier": nn.init.xavier_uniform_,
    "paper": partial(nn.init.normal_, std=0.1),
    "dirac": KAIMING,
}


def initialize(model: nn.Module, init: str, seed: int) -> None:
    """Fills the weights in place; the same seed gives the same weights.

    Args:
        init: A key of INITIALIZERS.
    """
    draws = generator(seed, "init")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            INITIALIZERS[init](module.weight, generator=draws)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if init == "dirac":
        first, *others = (module for module in model.modules() if isinstance(module, nn.Conv2d))
        see_cosines(first.weight)
        for convolution in others:
            pass_channels_on(convolution.weight)


@torch.no_grad()
def pass_channels_on(weight: Tensor) -> None:
    """Lets the first outputs of a convolution be its inputs; the other outputs keep their weights.

    Source: Zagoruyko and Komodakis 2017 (arXiv:1706.00388). Jordan 2024 (arXiv:2404.00498) does
    this for the first outputs only, as here.

    Args:
        weight: [out channels, in channels, height, width].
    """
    nn.init.dirac_(weight[: weight.shape[1]])


@torch.no_grad()
def see_cosines(weight: Tensor) -> None:
    """Gives the first outputs of a convolution the cosines of its window, each with both signs.

    Neighboring pixels of pictures are alike, so random weights see little else than their mean. The
    discrete cosine transform turns pixels into nearly uncorrelated values (Ahmed et al. 1974), and
    a batch norm gives these one variance. Jordan 2024 (arXiv:2404.00498) takes the eigenvectors of
    the data instead, which need the data. Low frequencies come first.

    Args:
        weight: [out channels, in channels, height, width]; the other outputs keep their weights.
    """
    channels, rows, columns = (cosines(length) for length in weight.shape[1:])
    patterns = torch.kron(torch.kron(channels, rows), columns).view(-1, *weight.shape[1:])
    frequencies = torch.stack(torch.meshgrid(*map(torch.arange, weight.shape[1:]), indexing="ij"))
    order = frequencies.sum(0).flatten().argsort(stable=True)
    count = min(len(order), len(weight) // 2)
    # The norm that `kaiming` gives a filter on average.
    patterns = math.sqrt(2) * patterns[order[:count]]
    weight[: 2 * count] = torch.cat([patterns, -patterns])


def cosines(length: int) -> Tensor:
    """Returns the orthonormal vectors of the discrete cosine transform as rows."""
    frequency = torch.arange(length)[:, None]
    position = torch.arange(length) + 0.5
    values = torch.cos(math.pi * frequency * position / length)
    return values / values.norm(dim=1, keepdim=True)
