"""Evaluates `sweep.where`, an expression over a job's numbers and keys that selects jobs.

`--where` of a report has the same grammar. The expression is parsed with `ast` and evaluated node
by node, never executed.
"""

import ast
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import Any

from vggexp.config.derived import layers
from vggexp.config.keys import flatten, to_plain
from vggexp.config.parse import did_you_mean
from vggexp.config.schema import Config
from vggexp.errors import ConfigError
from vggexp.models.shapes import macs, parameters, weight_layers

MAX_CHARS = 1000  # of an expression
METRIC_PARTS = ("train", "val", "test", "best", "best/val", "time")  # before a metric's last slash
CONSTANTS = {"true": True, "false": False, "null": None}
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
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class NullValueError(ConfigError):
    """A condition has no truth, because it needs a value that is null."""


def matches(text: str, config: Config) -> bool:
    """Returns whether a job satisfies the expression. Raises ConfigError if it has no truth."""
    source = f"sweep.where={text}"
    expression = parse_filter(text, source, "parameters < 30e6 and macs < 1e9")
    allowed = "parameters, macs, weight_layers and keys may stand"
    return evaluate_filter(expression, filter_values(config), source, allowed)


def parse_filter(text: str, source: str, example: str) -> ast.expr:
    """Parses an expression.

    Args:
        source: The setting as typed, which begins the error.
        example: A right expression, for the error.

    Raises:
        ConfigError: The text is no expression.
    """
    try:
        if len(text) > MAX_CHARS:
            raise ValueError
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{source}: not an expression, as {example}") from None


def evaluate_filter(
    expression: ast.expr, values: Mapping[str, Any], source: str, allowed: str
) -> bool:
    """Returns whether the values satisfy the expression.

    Args:
        source: The setting as typed, which begins the error.
        allowed: The names that may stand in an expression, for the error.

    Raises:
        NullValueError: The expression has no truth, because a value in it is null.
        ConfigError: The expression has no truth, or a name in it is unknown.
    """
    try:
        result = _evaluate(expression, values)
    except NullValueError as error:
        raise NullValueError(f"{source}: {error}") from None
    except (TypeError, ArithmeticError, RecursionError) as error:
        raise ConfigError(f"{source}: {error}") from None
    except KeyError as error:
        name = error.args[0]
        nearest = did_you_mean(name, values)
        raise ConfigError(f"{source}: {name}: unknown; {nearest}{allowed}") from None
    except LookupError as error:
        raise ConfigError(f"{source}: {error.args[0]}") from None
    if not isinstance(result, bool):
        kind = NullValueError if result is None else ConfigError
        raise kind(f"{source}: gives {result}, not true or false; compare it with something")
    return result


def names(node: ast.AST) -> Iterator[str]:
    """Yields the names in an expression: `parameters`, `optimizer.lr`, `val/accuracy`."""
    name = _name(node)
    if name is not None:
        yield name
        return
    for child in ast.iter_child_nodes(node):
        yield from names(child)


def _name(node: ast.AST) -> str | None:
    """Returns the name that a node is; None for another node.

    A metric such as val/accuracy is a quotient of names to Python.
    """
    match node:
        case ast.Name() | ast.Attribute():
            return ast.unparse(node)
        case ast.BinOp(op=ast.Div(), left=left, right=ast.Name(id=metric)):
            part = _name(left)
            if part in METRIC_PARTS:
                return f"{part}/{metric}"
    return None


def filter_values(config: Config) -> dict[str, Any]:
    """Returns the names of an expression: the numbers of `plan`, and every key of the job."""
    table = layers(config)
    values = {
        "parameters": parameters(table),
        "macs": macs(table),
        "weight_layers": weight_layers(table),
        **CONSTANTS,
    }
    return values | flatten(to_plain(config))


def _evaluate(node: ast.expr, values: Mapping[str, Any]) -> Any:
    """Evaluates a node.

    Raises:
        NullValueError: A value is null and would have to be a number.
        KeyError: A name is unknown.
        LookupError: The node is none of those listed here.
    """
    name = _name(node)
    if name is not None:
        return values[name]
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.List() | ast.Tuple():
            return [_evaluate(item, values) for item in node.elts]
        case ast.UnaryOp(op=ast.Not()):
            return not _evaluate(node.operand, values)
        case ast.UnaryOp() if type(node.op) in UNARY_OPERATORS:
            return UNARY_OPERATORS[type(node.op)](_evaluate_number(node.operand, values))
        case ast.BinOp() if type(node.op) in BINARY_OPERATORS:
            left = _evaluate_number(node.left, values)
            right = _evaluate_number(node.right, values)
            return BINARY_OPERATORS[type(node.op)](left, right)
        case ast.BoolOp():
            conditions = [partial(_evaluate, operand, values) for operand in node.values]
            return _join(conditions, decisive=isinstance(node.op, ast.Or))
        case ast.Compare() if all(type(sign) in BINARY_OPERATORS for sign in node.ops):
            return _join(_links(node, values), decisive=False)
    raise LookupError(
        f"{ast.unparse(node)} is not allowed; names, numbers, + - * / and comparisons are"
    )


def _join(conditions: Iterable[Callable[[], Any]], decisive: bool) -> bool:
    """Joins conditions: by `or`, where a true one is decisive, or by `and`, where a false one is.

    The order of the conditions does not matter: one without truth leaves the decision to the
    others.
    """
    undecided = None
    for condition in conditions:
        try:
            if bool(condition()) is decisive:
                return decisive
        except NullValueError as error:
            undecided = error
    if undecided is not None:
        raise undecided
    return not decisive


def _links(node: ast.Compare, values: Mapping[str, Any]) -> Iterator[Callable[[], bool]]:
    """Yields the conditions of a chain: 1 < x and x < 3 of 1 < x < 3."""
    operands = pairwise([node.left, *node.comparators])
    for sign, (left, right) in zip(node.ops, operands, strict=True):
        yield partial(_holds, sign, left, right, values)


def _holds(sign: ast.cmpop, left: ast.expr, right: ast.expr, values: Mapping[str, Any]) -> bool:
    """Compares two values. Null equals null alone; it has no place in an order, nor contents."""
    operands = _evaluate(left, values), _evaluate(right, values)
    try:
        return bool(BINARY_OPERATORS[type(sign)](*operands))
    except TypeError as error:
        if any(operand is None for operand in operands):
            raise NullValueError(str(error)) from None
        raise


def _evaluate_number(node: ast.expr, values: Mapping[str, Any]) -> float:
    """Evaluates an operand. Raises TypeError for text: text times a number would be a long text."""
    value = _evaluate(node, values)
    if value is None:
        raise NullValueError(f"{ast.unparse(node)} is not a number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{ast.unparse(node)} is not a number")
    return value
