"""The filter ``table.where``: compares the axes, such as ``method in [rigl, set]``."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from sparsebench.errors import UserError, bad_value

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda value, many: value in many,
    ast.NotIn: lambda value, many: value not in many,
}
ALLOWED = "compare by ==, !=, <, <=, >, >=, in, not in; join by and, or, not"


def parse(text: str) -> ast.expr:
    """The expression of a filter.

    Raises:
        UserError: it is none, or does more than compare.
    """
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise bad_value("table.where", text, ALLOWED) from None


def holds(expression: ast.expr, names: Mapping[str, Any]) -> bool:
    """Whether a filter is true of a cell.

    Args:
        expression: from :func:`parse`.
        names: what the axes are called, and their values in this cell; any other bare word
            stands for itself.
    """
    return bool(_value(expression, names))


def words(expression: ast.expr) -> set[str]:
    """The bare words of a filter that something is compared with or that are compared."""
    return {node.id for node in ast.walk(expression) if isinstance(node, ast.Name)}


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id, node.id)
        case ast.List() | ast.Tuple() | ast.Set():
            return [_value(item, names) for item in node.elts]
        case ast.UnaryOp(op=ast.Not()):
            return not _value(node.operand, names)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
            return -number
        case ast.BoolOp(op=ast.And()):
            return all(_value(item, names) for item in node.values)
        case ast.BoolOp(op=ast.Or()):
            return any(_value(item, names) for item in node.values)
        case ast.Compare():
            return _compare(node, names)
    raise bad_value("table.where", ast.unparse(node), ALLOWED)


def _compare(node: ast.Compare, names: Mapping[str, Any]) -> bool:
    left = _value(node.left, names)
    for kind, following in zip(node.ops, node.comparators, strict=True):
        right = _value(following, names)
        compare = _COMPARE.get(type(kind))
        if compare is None:
            raise bad_value("table.where", ast.unparse(node), ALLOWED)
        try:
            if not compare(left, right):
                return False
        except TypeError:
            said = f"'{left}' and '{right}' can't be compared like this"
            raise UserError(f"table.where={ast.unparse(node)}: {said}") from None
        left = right
    return True
