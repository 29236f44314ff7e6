"""The arguments read from torch's source are those that torch itself has."""

import inspect
import math

import pytest
import torch

from vggexp.config import torch_optim

CLASSES = {
    name: cls
    for name, cls in vars(torch.optim).items()
    if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)
}


def test_the_classes_are_torchs():
    assert {*torch_optim.optimizers()} == {*CLASSES} - {"Optimizer"}


@pytest.mark.parametrize("name", [name for name in CLASSES if torch_optim.is_usable(name)])
def test_the_arguments_are_torchs(name):
    parameters = inspect.signature(CLASSES[name].__init__).parameters
    own = [key for key in parameters if key not in torch_optim.RESERVED_ARGUMENTS]
    assert torch_optim.arguments(name) == tuple(own)


@pytest.mark.parametrize("name", torch_optim.UNSUPPORTED_OPTIMIZERS)
def test_an_unsupported_class_is_refused_with_its_reason(name):
    reason = torch_optim.UNSUPPORTED_OPTIMIZERS[name]
    assert torch_optim.name_problem(name).startswith(f"optimizer.name={name}: {reason}; choose")


def test_an_unknown_class_is_refused_with_the_nearest():
    problem = torch_optim.name_problem("AdamV")
    assert problem.startswith("optimizer.name=AdamV: no class of torch.optim; nearest Adam")


@pytest.mark.parametrize(
    "values",
    [{"momentum": 0, "nesterov": False}, {"momentum": 0.999}, {"dampening": 0.5}],
)
def test_arguments_within_their_range(values):
    assert list(torch_optim.argument_problems("SGD", values)) == []


@pytest.mark.parametrize("name", [name for name in CLASSES if torch_optim.is_usable(name)])
def test_the_defaults_of_torch_are_allowed(name):
    parameters = inspect.signature(CLASSES[name].__init__).parameters
    own = [key for key in torch_optim.arguments(name) if key != "weight_decay"]
    values = {key: parameters[key].default for key in own}
    assert list(torch_optim.argument_problems(name, values)) == []


@pytest.mark.parametrize(
    "name, values, expected",
    [
        ("SGD", {"momentum": 1}, "optimizer.momentum=1: must be >= 0 and < 1"),
        ("SGD", {"momentum": True}, "optimizer.momentum=true: must be >= 0 and < 1"),
        ("RMSprop", {"alpha": -0.1}, "optimizer.alpha=-0.1: must be >= 0 and < 1"),
        ("Adadelta", {"rho": "x"}, "optimizer.rho=x: must be >= 0 and < 1"),
        ("Adam", {"betas": [0.9]}, "optimizer.betas=[0.9]: needs two numbers, each >= 0 and < 1"),
        ("Adam", {"betas": [0.9, 1]}, "optimizer.betas=[0.9,1]: needs two numbers, each"),
        ("Adam", {"eps": -1}, "optimizer.eps=-1: must be >= 0"),
        ("Adafactor", {"eps": 1e-3}, "optimizer.eps=0.001: needs 2 finite values, as [null,0.001]"),
        ("SGD", {"nesterov": "no"}, "optimizer.nesterov=no: must be true or false"),
        ("RMSprop", {"centered": 1}, "optimizer.centered=1: must be true or false"),
        ("ASGD", {"t0": "abc"}, "optimizer.t0=abc: must be a finite number"),
        ("Adam", {"eps": 10**400}, f"optimizer.eps={10**400}: must be a finite number"),
        ("Adam", {"eps": math.nan}, "optimizer.eps=nan: must be a finite number"),
        ("Rprop", {"etas": [0.5]}, "optimizer.etas=[0.5]: needs 2 finite values, as [0.5,1.2]"),
        ("SGD", {"momentun": 0.9}, "optimizer.momentun=0.9: not an argument of SGD; nearest mom"),
        ("SGD", {"lr": 0.9}, "optimizer.lr=0.9: not an argument of SGD; "),
    ],
)
def test_wrong_arguments(name, values, expected):
    (problem,) = torch_optim.argument_problems(name, values)
    assert problem.startswith(expected)
