"""Reads the arguments of the torch.optim classes from their source, so that a command without
torch can refuse a wrong one."""

import ast
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

from vggexp.config.similarity import did_you_mean
from vggexp.formatting import format_value

# Arguments that vggexp sets itself, or that have no meaning in its loop.
RESERVED_ARGUMENTS = (
    "self",
    "params",
    "lr",
    "fused",
    "foreach",
    "capturable",
    "differentiable",
    "maximize",
)
UNSUPPORTED_OPTIMIZERS = {
    "LBFGS": "needs a closure that evaluates the loss several times a step",
    "SparseAdam": "takes sparse gradients only",
    "Muon": "updates matrices only, and these networks have biases and convolutions",
    "Optimizer": "the base class, not an optimizer",
}
# Arguments of which torch does not check the range, or checks it only when the model is built.
FRACTION_ARGUMENTS = ("momentum", "alpha", "rho", "dampening")


@cache
def optimizers() -> dict[str, Path]:
    """Returns the source file of each class of the installed torch.optim; {} without torch."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    files = {}
    definition = re.compile(r"^class ([A-Z]\w+)\((?:Optimizer|Adam)\)", re.MULTILINE)
    for path in sorted(Path(spec.origin).with_name("optim").glob("*.py")):
        for name in definition.findall(path.read_text("utf-8")):
            files[name] = path
    return files


def arguments(name: str) -> tuple[str, ...]:
    """Returns the arguments of an optimizer's constructor that a configuration may set."""
    return tuple(_defaults(name))


@cache
def _defaults(name: str) -> dict[str, object]:
    """Returns the default of each argument that a configuration may set; None for a name."""
    tree = ast.parse(optimizers()[name].read_text("utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    body = classes[name].body
    methods = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    signature = methods["__init__"].args
    first = len(signature.args) - len(signature.defaults)
    defaults: dict[str, object] = {}
    for argument, node in [
        *zip(signature.args[first:], signature.defaults, strict=True),
        *zip(signature.kwonlyargs, signature.kw_defaults, strict=True),
    ]:
        if argument.arg not in RESERVED_ARGUMENTS:
            defaults[argument.arg] = None
            with suppress(ValueError):  # the default is no plain value
                defaults[argument.arg] = ast.literal_eval(node or ast.Constant(None))
    return defaults


def is_usable(name: str) -> bool:
    """Returns whether the installed torch.optim has this class and vggexp supports it."""
    return name in optimizers() and name not in UNSUPPORTED_OPTIMIZERS


def name_problem(name: str) -> str | None:
    """Returns why no run can use this optimizer. Without torch every unknown name passes."""
    if name in UNSUPPORTED_OPTIMIZERS:
        reason = UNSUPPORTED_OPTIMIZERS[name]
        return f"optimizer.name={name}: {reason}; choose another class of torch.optim"
    if not optimizers() or name in optimizers():
        return None
    allowed = [known for known in sorted(optimizers()) if is_usable(known)]
    nearest = did_you_mean(name, allowed)
    return f"optimizer.name={name}: no class of torch.optim; {nearest}allowed {', '.join(allowed)}"


def argument_problems(name: str, values: Mapping[str, object]) -> Iterator[str]:
    """Yields what is wrong with the arguments of a usable optimizer, unknown names first."""
    own = [argument for argument in arguments(name) if argument != "weight_decay"]
    accepted = ", ".join(["lr", "weight_decay", *own])
    for key, value in values.items():
        if key not in own:
            problem = f"optimizer.{key}={format_value(value)}: not an argument of {name}"
            yield f"{problem}; {did_you_mean(str(key), own)}it takes {accepted}"
    for key, value in values.items():
        if reason := _value_error(key, value, _defaults(name).get(key)):
            yield f"optimizer.{key}={format_value(value)}: {reason}"


def _value_error(key: str, value: object, default: object) -> str | None:
    """Returns why the optimizer cannot work with a value; the default shows the type."""
    if key in FRACTION_ARGUMENTS and not _is_fraction(value):
        return "must be >= 0 and < 1"
    if key == "betas" and not _is_pair_of_fractions(value):
        return "needs two numbers, each >= 0 and < 1"
    if isinstance(default, tuple) and not _is_list_like(value, default):
        return f"needs {len(default)} finite values, as {format_value([*default])}"
    if isinstance(default, bool) and not isinstance(value, bool):
        return "must be true or false"
    if _is_number(default) and not _is_number(value):
        return "must be a finite number"
    if key == "eps" and _is_number(value) and value < 0:
        return "must be >= 0"
    return None


def _is_list_like(value: object, default: tuple[object, ...]) -> bool:
    """Returns whether a value is a list of numbers, or of nulls where the default has None."""
    if not isinstance(value, list | tuple) or len(value) != len(default):
        return False
    for item, usual in zip(value, default, strict=True):
        if not _is_number(item) and (item is not None or usual is not None):
            return False
    return True


def _is_number(value: object) -> TypeGuard[int | float]:
    """Returns whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def _is_fraction(value: object) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_pair_of_fractions(value: object) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    return all(_is_fraction(item) for item in value)
