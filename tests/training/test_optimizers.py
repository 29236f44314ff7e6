"""Every optimizer that a configuration may name takes a step and is torch's to the last bit."""

import pytest
import torch
from torch import nn

from tests.factories import make_model
from vggexp.config.torch_optim import UNSUPPORTED_OPTIMIZERS, optimizers
from vggexp.errors import ConfigError
from vggexp.training.optimizers import build_optimizer, set_lr

FUSED = ("SGD", "Adam", "AdamW", "Adagrad")  # the classes with a fused form on the CPU
NAMES = sorted(set(optimizers()) - set(UNSUPPORTED_OPTIMIZERS))
WITH_ARGUMENTS = [
    ("SGD", {"momentum": 0.9}),
    ("SGD", {"momentum": 0.9, "nesterov": True}),
    ("Adam", {"betas": [0.8, 0.9], "amsgrad": True}),
    ("AdamW", {"betas": [0.8, 0.9]}),
    ("RMSprop", {"alpha": 0.9, "momentum": 0.5, "centered": True}),
    ("Rprop", {"etas": [0.4, 1.3], "step_sizes": [1e-5, 10]}),
]


def make_small_model() -> nn.Module:
    return make_model(hidden=(5,), dropout=0, classes=3)


def backward(model: nn.Module, seed: int = 0) -> None:
    images = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    nn.functional.cross_entropy(model(images), torch.arange(6) % 3).backward()


@pytest.mark.parametrize(("name", "arguments"), [*((name, {}) for name in NAMES), *WITH_ARGUMENTS])
def test_a_step(name, arguments):
    model = make_small_model()
    before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
    optimizer = build_optimizer(name, model, 0.01, 0.0, arguments)
    set_lr(optimizer, 0.02)
    backward(model)
    optimizer.step()
    moved = set()
    with_gradient = set()
    for key, weight in model.named_parameters():
        assert weight.isfinite().all(), key
        if not torch.equal(weight, before[key]):
            moved.add(key)
        if weight.grad.any():
            with_gradient.add(key)
    assert moved == with_gradient
    assert moved >= {"0.0.0.weight", "2.3.bias"}
    assert bool(optimizer.defaults.get("fused")) == (name in FUSED)
    for key, value in arguments.items():
        assert optimizer.defaults[key] == (tuple(value) if isinstance(value, list) else value)
    assert [group["lr"] for group in optimizer.param_groups] == [0.02]


@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_of_torchs_class(name):
    model = make_small_model()
    optimizer = build_optimizer(name, model, 0.01, 0.0, {})
    defaults = optimizer.defaults
    arguments = {key: defaults[key] for key in ("weight_decay", "fused") if key in defaults}
    torch_model = make_small_model()
    torch_optimizer = getattr(torch.optim, name)(torch_model.parameters(), lr=0.01, **arguments)
    for trained, updating in ((model, optimizer), (torch_model, torch_optimizer)):
        for seed in range(3):
            backward(trained, seed)
            updating.step()
            updating.zero_grad()
            updating.load_state_dict(updating.state_dict())
    for weight, torch_weight in zip(model.parameters(), torch_model.parameters(), strict=True):
        assert torch.equal(weight, torch_weight)


@pytest.mark.parametrize("name", NAMES)
def test_step_hooks_fire(name):
    model = make_small_model()
    optimizer = build_optimizer(name, model, 0.01, 0.0, {})
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    backward(model)
    optimizer.step()
    assert calls == ["before", "after"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("SGD", {"momentum": -1}, "momentum"),
        ("SGD", {"nesterov": True}, "[Nn]esterov"),
        ("SGD", {"momentum": "much"}, "str"),
        ("Adam", {"betas": [2, 0.9]}, "beta"),
        ("Adam", {"betas": [0.9]}, "index"),
        ("RMSprop", {"unknown": 1}, "unknown"),
    ],
)
def test_a_rejected_argument(name, arguments, message):
    with pytest.raises(ConfigError, match=rf"^optimizer\.name={name}: .*{message}"):
        build_optimizer(name, make_small_model(), 0.1, 0, arguments)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_with_weight_decay_decays(name):
    optimizer = build_optimizer(name, make_small_model(), 0.01, 3, {})
    assert optimizer.param_groups[0].get("weight_decay", 3) == 3
