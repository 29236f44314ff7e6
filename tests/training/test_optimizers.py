"""Every optimizer that a configuration may name takes a step; what a class refuses is told as a configuration error."""

import pytest
import torch
from torch import nn

from vggexp.config.torch_optim import UNSUPPORTED_OPTIMIZERS, optimizers
from vggexp.errors import ConfigError
from vggexp.models.shapes import Block
from vggexp.models.vgg import vgg
from vggexp.training.optimizers import build_optimizer, set_lr

FUSED = ("SGD", "Adam", "AdamW", "Adagrad")  # the classes with a fused form on the CPU
OWN = [
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {"betas": [0.8, 0.9], "amsgrad": True}),
    ("AdamW", {"betas": [0.8, 0.9]}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.5, "centered": True}),
    ("Rprop", {"etas": [0.4, 1.3], "step_sizes": [1e-5, 10]}),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return vgg(
        [Block(1, 4)],
        norm="none",
        hidden=(5,),
        dropout=0,
        width=1,
        in_channels=1,
        size=4,
        classes=3,
    )


@pytest.mark.parametrize(
    ("name", "own"),
    [*((name, {}) for name in sorted(set(optimizers()) - set(UNSUPPORTED_OPTIMIZERS))), *OWN],
)
def test_a_step(name, own):
    model, before = network(), dict(network().named_parameters())
    made = build_optimizer(name, model, 0.01, 0.0, own)
    set_lr(made, 0.02)
    nn.functional.cross_entropy(model(torch.rand(6, 1, 4, 4)), torch.arange(6) % 3).backward()
    made.step()
    moved = {
        key for key, weight in model.named_parameters() if not torch.equal(weight, before[key])
    }
    assert (
        moved
        == {key for key, weight in model.named_parameters() if weight.grad.any()}
        >= {"0.0.0.weight", "2.3.bias"}
    )
    assert all(weight.isfinite().all() for weight in model.parameters())
    assert bool(made.defaults.get("fused")) == (name in FUSED)
    assert {key: made.defaults[key] for key in own} == {
        k: tuple(v) if type(v) is list else v for k, v in own.items()
    }
    assert [group["lr"] for group in made.param_groups] == [0.02]


@pytest.mark.parametrize("name", sorted(set(optimizers()) - set(UNSUPPORTED_OPTIMIZERS)))
def test_it_is_torchs_to_the_bit(name):
    nets = network(), network()
    ours = build_optimizer(name, nets[0], 0.01, 0.0, {})
    given = {key: ours.defaults[key] for key in ("weight_decay", "fused") if key in ours.defaults}
    theirs = getattr(torch.optim, name)(nets[1].parameters(), lr=0.01, **given)
    for model, made in zip(nets, (ours, theirs), strict=True):
        for step in range(3):
            images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(step))
            nn.functional.cross_entropy(model(images), torch.arange(6) % 3).backward()
            made.step()
            made.zero_grad()
            made.load_state_dict(made.state_dict())
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))


@pytest.mark.parametrize(
    ("name", "own", "told"),
    [
        ("SGD", {"momentum": -1}, "momentum"),
        ("SGD", {"nesterov": True}, "[Nn]esterov"),
        ("SGD", {"momentum": "much"}, "str"),
        ("Adam", {"betas": [2, 0.9]}, "beta"),
        ("Adam", {"betas": [0.9]}, "index"),
        ("RMSprop", {"unknown": 1}, "unknown"),
    ],
)
def test_a_refused_argument(name, own, told):
    with pytest.raises(ConfigError, match=rf"^optimizer\.name={name}: .*{told}"):
        build_optimizer(name, network(), 0.1, 0, own)
