"""Initial weights. Every bias starts at zero, every batch norm at the identity."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from vggexp.rng import generator

# kaiming: He et al. 2015, arXiv:1502.01852, N(0, 2 / fan_in).
# xavier: Glorot and Bengio 2010, uniform with bound sqrt(6 / (fan_in + fan_out)), the same as
# Gluon's init.Xavier().
# paper: Simonyan and Zisserman 2015, section 3.1, N(0, variance 1e-2), so the std is 0.1.
INITIALIZERS: dict[str, Callable[..., Any]] = {
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "xavier": nn.init.xavier_uniform_,
    "paper": partial(nn.init.normal_, std=0.1),
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
