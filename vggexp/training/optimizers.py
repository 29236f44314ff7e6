"""Optimizers by the name of their class in torch.optim."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vggexp.errors import ConfigError


def build_optimizer(
    name: str, model: nn.Module, lr: float, weight_decay: float, arguments: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """Returns an optimizer of all trainable parameters, in its fused form if the class has one.

    Args:
        arguments: Further arguments of the class.

    Raises:
        ConfigError: The class rejects the value of an argument.
    """
    cls = _without_compiler_hooks(getattr(torch.optim, name))
    accepted = inspect.signature(cls).parameters
    keywords: dict[str, Any] = {"lr": lr}
    for key, value in arguments.items():
        if isinstance(value, list):
            value = tuple(value)
        keywords[key] = value
    if "weight_decay" in accepted:
        keywords["weight_decay"] = weight_decay
    if "fused" in accepted:
        # Metal has no fused kernel for Adagrad, and torch raises only at the first step.
        on_mps = next(model.parameters()).device.type == "mps"
        keywords["fused"] = not (on_mps and name == "Adagrad")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        return cls(parameters, **keywords)
    except (TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"optimizer.name={name}: {error}") from error


def _without_compiler_hooks(cls: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Returns a subclass with the methods as they are written.

    torch wraps these methods for its compiler. No step is compiled here, but the wrappers import
    torch._dynamo at their first call, which takes two seconds and 160 MB of a process.

    Two facts of torch keep the subclass a full optimizer:
        1. `Optimizer.__init__` calls `_patch_step_function`. This method wraps `step` of every
           class whose `step` lacks the mark `hooked`. The `step` below lacks the mark, so the
           wrapper is added, step hooks fire and the profiler sees each step.
        2. `GradScaler.step` looks only at the instance's `_step_supports_amp_scaling` and at the
           signature of `step`. The subclass changes neither, so fp16 steps are scaled as usual.
    """
    methods: dict[str, Any] = {"step": torch.no_grad()(inspect.unwrap(cls.step))}
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        methods[name] = inspect.unwrap(getattr(cls, name))
    return type(cls.__name__, (cls,), methods)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
