"""sweep.where: which jobs of a grid are wanted, as arithmetic over their numbers and keys; parsed, never run."""

import ast
import operator
from collections.abc import Mapping
from typing import Any

from vggexp.config.derived import layers
from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import did_you_mean
from vggexp.config.schema import Config
from vggexp.errors import ConfigError
from vggexp.models.shapes import macs, parameters, weight_layers

MAX_CHARS = 1000  # characters
BINARY: dict[type, Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}
UNARY: dict[type, Any] = {ast.Not: operator.not_, ast.USub: operator.neg, ast.UAdd: operator.pos}


def parse_filter(text: str) -> ast.expr:
    """Raises ConfigError where it is no expression."""
    try:
        if len(text) > MAX_CHARS:
            raise ValueError
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(
            f"sweep.where={text}: not an expression, as parameters < 30e6 and macs < 1e9"
        ) from None


def matches(text: str, config: Config) -> bool:
    """Whether the job's numbers satisfy the expression. Raises ConfigError."""
    try:
        answer = _value(parse_filter(text), filter_values(config))
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"sweep.where={text}: {error}") from None
    except LookupError as error:
        raise ConfigError(f"sweep.where={text}: {error.args[0]}") from None
    if not isinstance(answer, bool):
        raise ConfigError(
            f"sweep.where={text}: gives {answer}, not true or false; compare it with something"
        )
    return answer


def filter_values(config: Config) -> dict[str, Any]:
    """What an expression may name: plan's numbers, and every key of the configuration."""
    table = layers(config)
    numbers = {
        "parameters": parameters(table),
        "macs": macs(table),
        "weight_layers": weight_layers(table),
    }
    return numbers | {"true": True, "false": False, "null": None} | flatten(to_plain(config))


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.Name() | ast.Attribute():
            return _named(ast.unparse(node), names)
        case ast.List() | ast.Tuple():
            return [_value(item, names) for item in node.elts]
        case ast.UnaryOp() if type(node.op) in UNARY:
            return UNARY[type(node.op)](_value(node.operand, names))
        case ast.BinOp() if type(node.op) in BINARY:
            return BINARY[type(node.op)](_number(node.left, names), _number(node.right, names))
        case ast.BoolOp():
            joined = all if isinstance(node.op, ast.And) else any
            return joined(bool(_value(part, names)) for part in node.values)
        case ast.Compare() if all(type(sign) in BINARY for sign in node.ops):
            sides = [_value(side, names) for side in (node.left, *node.comparators)]
            pairs = zip(node.ops, sides, sides[1:], strict=False)
            return all(BINARY[type(sign)](one, other) for sign, one, other in pairs)
    raise LookupError(
        f"{ast.unparse(node)} is not allowed; names, numbers, + - * / and comparisons are"
    )


def _number(node: ast.expr, names: Mapping[str, Any]) -> float:
    """Text times a number would be a long text."""
    value = _value(node, names)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{ast.unparse(node)} is not a number")
    return value


def _named(name: str, names: Mapping[str, Any]) -> Any:
    if name not in names:
        raise LookupError(
            f"{name}: unknown; {did_you_mean(name, names)}parameters, macs, weight_layers and keys may stand"
        )
    return names[name]
