"""Evaluates `sweep.where`, an expression over a job's numbers and keys that selects jobs.

The expression is parsed with `ast` and evaluated node by node, never executed.
"""

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

MAX_CHARS = 1000  # of an expression
BINARY_OPERATORS: dict[type, Any] = {
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
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}
UNARY_OPERATORS: dict[type, Any] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


def matches(text: str, config: Config) -> bool:
    """Returns whether a job satisfies the expression. Raises ConfigError if it has no truth."""
    try:
        result = _evaluate(parse_filter(text), filter_values(config))
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"sweep.where={text}: {error}") from None
    except LookupError as error:
        raise ConfigError(f"sweep.where={text}: {error.args[0]}") from None
    if not isinstance(result, bool):
        raise ConfigError(
            f"sweep.where={text}: gives {result}, not true or false; compare it with something"
        )
    return result


def parse_filter(text: str) -> ast.expr:
    """Parses an expression. Raises ConfigError if the text is no expression."""
    try:
        if len(text) > MAX_CHARS:
            raise ValueError
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(
            f"sweep.where={text}: not an expression, as parameters < 30e6 and macs < 1e9"
        ) from None


def filter_values(config: Config) -> dict[str, Any]:
    """Returns the names of an expression: the numbers of `plan`, and every key of the job."""
    table = layers(config)
    values = {
        "parameters": parameters(table),
        "macs": macs(table),
        "weight_layers": weight_layers(table),
        "true": True,
        "false": False,
        "null": None,
    }
    return values | flatten(to_plain(config))


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Evaluates a node. Raises LookupError for unknown names and for anything not listed here."""
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.Name() | ast.Attribute():
            return _lookup(ast.unparse(node), values)
        case ast.List() | ast.Tuple():
            return [_evaluate(item, values) for item in node.elts]
        case ast.UnaryOp() if type(node.op) in UNARY_OPERATORS:
            operand = _evaluate(node.operand, values)
            return UNARY_OPERATORS[type(node.op)](operand)
        case ast.BinOp() if type(node.op) in BINARY_OPERATORS:
            left = _evaluate_number(node.left, values)
            right = _evaluate_number(node.right, values)
            return BINARY_OPERATORS[type(node.op)](left, right)
        case ast.BoolOp():
            combine = all if isinstance(node.op, ast.And) else any
            return combine(bool(_evaluate(operand, values)) for operand in node.values)
        case ast.Compare() if all(type(sign) in BINARY_OPERATORS for sign in node.ops):
            return _compare(node, values)
    raise LookupError(
        f"{ast.unparse(node)} is not allowed; names, numbers, + - * / and comparisons are"
    )


def _compare(node: ast.Compare, values: Mapping[str, Any]) -> bool:
    """Evaluates a chain such as 1 < x < 3."""
    left = _evaluate(node.left, values)
    rights = [_evaluate(comparator, values) for comparator in node.comparators]
    for sign, right in zip(node.ops, rights, strict=True):
        if not BINARY_OPERATORS[type(sign)](left, right):
            return False
        left = right
    return True


def _evaluate_number(node: ast.expr, values: Mapping[str, Any]) -> float:
    """Evaluates an operand. Raises TypeError for text: text times a number would be a long text."""
    value = _evaluate(node, values)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{ast.unparse(node)} is not a number")
    return value


def _lookup(name: str, values: Mapping[str, Any]) -> Any:
    if name not in values:
        raise LookupError(
            f"{name}: unknown; {did_you_mean(name, values)}"
            "parameters, macs, weight_layers and keys may stand"
        )
    return values[name]
