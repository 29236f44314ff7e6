"""What the classes of torch.optim take, read from their source so that a command can be refused without torch."""

import ast
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from vggexp.config.parse import did_you_mean
from vggexp.formatting import format_value

# Set by vggexp itself, or meaningless in its loop.
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


@cache
def optimizers() -> dict[str, Path]:
    """The classes of the installed torch.optim by name, with the file of each; empty where torch is not installed."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    found = {}
    for path in sorted((Path(spec.origin).parent / "optim").glob("*.py")):
        for name in re.findall(
            r"^class ([A-Z]\w+)\((?:Optimizer|Adam)\)", path.read_text("utf-8"), re.MULTILINE
        ):
            found[name] = path
    return found


@cache
def arguments(name: str) -> tuple[str, ...]:
    """The names of the arguments of an optimizer's constructor that a configuration may set."""
    tree = ast.parse(optimizers()[name].read_text("utf-8"))
    cls = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    init = next(
        node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"
    )
    return tuple(
        arg.arg
        for arg in init.args.args + init.args.kwonlyargs
        if arg.arg not in RESERVED_ARGUMENTS
    )


def optimizer_problems(name: str, weight_decay: float, given: dict[str, object]) -> list[str]:
    """What is wrong with an optimizer's name, its weight decay and its own arguments."""
    known = optimizers()
    if name in UNSUPPORTED_OPTIMIZERS:
        return [
            f"optimizer.name={name}: {UNSUPPORTED_OPTIMIZERS[name]}; choose another class of torch.optim"
        ]
    if not known:
        return []
    if name not in known:
        allowed = sorted(set(known) - set(UNSUPPORTED_OPTIMIZERS))
        return [
            f"optimizer.name={name}: no class of torch.optim; {did_you_mean(name, allowed)}allowed {', '.join(allowed)}"
        ]
    takes = arguments(name)
    own = [argument for argument in takes if argument != "weight_decay"]
    problems = (
        [f"optimizer.weight_decay={weight_decay:g}: {name} has none; set it to 0"]
        if (weight_decay and "weight_decay" not in takes)
        else []
    )
    all_own = ", ".join(["lr", "weight_decay", *own])
    problems += [
        f"optimizer.{key}={format_value(value)}: not an argument of {name}; {did_you_mean(key, own)}it takes {all_own}"
        for key, value in given.items()
        if key not in own
    ]
    return problems + [problem for key, value in given.items() if (problem := _misfit(key, value))]


def _misfit(key: str, value: object) -> str | None:
    """The ranges that torch itself does not check, or checks only once the network is built."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if key in ("momentum", "alpha", "rho", "dampening") and not (number and 0 <= value < 1):  # type: ignore[operator]
        return f"optimizer.{key}={format_value(value)}: must be >= 0 and < 1"
    if key == "betas" and not _pair_of_shares(value):
        return f"optimizer.betas={format_value(value)}: needs two numbers, each >= 0 and < 1"
    if key == "eps" and not (number and value >= 0):  # type: ignore[operator]
        return f"optimizer.eps={format_value(value)}: must be >= 0"
    return None


def _pair_of_shares(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) == 2
        and all(
            isinstance(item, int | float) and not isinstance(item, bool) and 0 <= item < 1
            for item in value
        )
    )
