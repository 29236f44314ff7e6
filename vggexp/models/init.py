"""Initial weights. Every bias starts at zero, every batch norm at the identity."""

import torch
from torch import nn

from vggexp.rng import sub_seed


def _kaiming(weight: torch.Tensor) -> None:
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


def _paper(weight: torch.Tensor) -> None:
    nn.init.normal_(weight, std=0.1)


# kaiming: He et al. 2015, arXiv:1502.01852, N(0, 2 / fan_in). xavier: Glorot and Bengio 2010, uniform with bound
# sqrt(6 / (fan_in + fan_out)), the same as Gluon's init.Xavier(). paper: Simonyan and Zisserman 2015, section 3.1,
# N(0, variance 1e-2), that is a standard deviation of 0.1.
FILL = {"kaiming": _kaiming, "xavier": nn.init.xavier_uniform_, "paper": _paper}


def initialize(net: nn.Module, init: str, seed: int) -> None:
    """Fills the weights of `net` in place; the same seed gives the same weights. init: a key of FILL."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(sub_seed(seed, "init"))
        for module in net.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                FILL[init](module.weight)
                nn.init.zeros_(module.bias)
