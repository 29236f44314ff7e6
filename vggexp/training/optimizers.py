"""Optimizers by the name of their class in torch.optim."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vggexp.errors import ConfigError


def build_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float, own: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Updates all parameters that are not frozen, in one fused call where the class can. own: its further arguments.

    Raises ConfigError where the class refuses an argument's value.
    """
    cls = _without_compiler_hooks(getattr(torch.optim, name))
    given: dict[str, Any] = {"lr": lr, **{key: _tuples(value) for key, value in own.items()}}
    takes = inspect.signature(cls).parameters
    if "weight_decay" in takes:
        given["weight_decay"] = weight_decay
    if "fused" in takes:
        on_mps = next(model.parameters()).device.type == "mps"
        given["fused"] = not (
            on_mps and name == "Adagrad"
        )  # no such kernel; torch tells only at the first step
    try:
        return cls(
            [parameter for parameter in model.parameters() if parameter.requires_grad], **given
        )
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"optimizer.name={name}: {error}") from error


def _without_compiler_hooks(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """The same optimizer with its methods as they are written.

    torch wraps them for its compiler, to which no step is given here, and the wrappers import torch._dynamo at their
    first call: two seconds and 160 MB of a process.
    """
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(cls, name)) for name in wrapped}
    return type(
        cls.__name__, (cls,), {**methods, "step": torch.no_grad()(inspect.unwrap(cls.step))}
    )


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
