"""Conditions on index columns, as people write them: ``mean_motion > 0.5 and codec in ["h264"]``.

A condition compares columns with numbers, texts, ``true``, ``false`` and ``null``, or with each
other: ``<``, ``<=``, ``==``, ``!=``, ``>=``, ``>``, ``in``, ``not in``, ``is null``, ``is not
null``, joined by ``and``, ``or`` and ``not``; numbers may be added, subtracted, multiplied and
divided. ``"cat" in caption`` looks for a text in a text. What compares with null is not known, and
a sample of which a condition is not known to hold does not fulfil it.

It is Python's grammar, of which nothing else is let through; nothing is ever evaluated by Python.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from reelmill.units import nearest

MAX_TEXT: Final = 2000
_MAX_DEPTH: Final = 40
_WORDS: Final[Mapping[str, bool | None]] = {"true": True, "false": False, "null": None}
_SIGNS: Final[Mapping[type[ast.cmpop], tuple[str, Callable[[Any, Any], bool]]]] = {
    ast.Eq: ("==", operator.eq),
    ast.NotEq: ("!=", operator.ne),
    ast.Lt: ("<", operator.lt),
    ast.LtE: ("<=", operator.le),
    ast.Gt: (">", operator.gt),
    ast.GtE: (">=", operator.ge),
}
_SUMS: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class ConditionError(ValueError):
    """A condition that is none, or that does not fit the columns it is asked of."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition. ``text`` is the same for all spellings of it; ``names`` are its columns."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Raises ``ConditionError`` for what is no condition."""
        if len(text) > MAX_TEXT:
            raise ConditionError(f"a condition has at most {MAX_TEXT} characters")
        try:
            tree = ast.parse(text.strip(), mode="eval").body
            _refuse(tree, 0)
        except SyntaxError as error:
            raise ConditionError(f"{text!r} is no condition: {error.msg}") from None
        except ConditionError:
            raise
        except (ValueError, RecursionError, MemoryError):
            raise ConditionError("the condition cannot be read") from None
        spelled = ast.unparse(tree)
        # It is read once more, as it is spelled here, by whoever has to decide on samples.
        if len(spelled) > MAX_TEXT:
            raise ConditionError(
                f"a condition has at most {MAX_TEXT} characters, with spaces after commas and "
                "around signs"
            )
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        return cls(spelled, tuple(sorted(names - _WORDS.keys())), tree)

    def refuse_unknown(self, columns: Collection[str]) -> None:
        """Raises ``ConditionError`` if it names a column that is not there."""
        for name in self.names:
            if name not in columns:
                near = nearest(name, columns)
                hint = f"did you mean {near}?" if near else f"there are {', '.join(columns)}"
                raise ConditionError(f"no column is named {name}; {hint}")

    def failure(self, row: Mapping[str, Any]) -> str | None:
        """Which part of the condition a row does not fulfil; ``None`` if it fulfils it.

        Raises:
            ConditionError: it compares what cannot be compared.
        """
        return _failure(self.tree, row)


def _refuse(node: ast.expr, depth: int) -> None:
    """Raises ``ConditionError`` for whatever is not a condition's."""
    if depth > _MAX_DEPTH:
        raise ConditionError("the condition is nested too deeply")
    for child in _parts(node):
        _refuse(child, depth + 1)


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    match node:
        case ast.BoolOp():
            yield from node.values
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.BinOp() if type(node.op) in _SUMS:
            yield from (node.left, node.right)
        case ast.Compare():
            for op, right in zip(node.ops, node.comparators, strict=True):
                if isinstance(op, ast.Is | ast.IsNot) and not _is_null(right):
                    raise ConditionError("'is' is for null only; write ==")
            yield from (node.left, *node.comparators)
        case ast.List() | ast.Tuple():
            yield from node.elts
        case ast.Constant(value=bool() | int() | float() | str() | None) | ast.Name():
            pass
        case _:
            raise ConditionError(
                f"{ast.unparse(node)[:80]!r} may not be in a condition: it compares columns with "
                "numbers, texts, true, false and null"
            )


def _is_null(node: ast.expr) -> bool:
    return (isinstance(node, ast.Name) and node.id == "null") or (
        isinstance(node, ast.Constant) and node.value is None
    )


def _value(node: ast.expr, row: Mapping[str, Any]) -> Any:
    """The value of a part; ``None`` where it is not known."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return _WORDS[node.id] if node.id in _WORDS else row[node.id]
        case ast.List() | ast.Tuple():
            return [_value(one, row) for one in node.elts]
        case ast.BoolOp():
            return _joined(node, row)
        case ast.UnaryOp(op=ast.Not()):
            value = _truth(node.operand, row)
            return None if value is None else not value
        case ast.UnaryOp():
            value = _value(node.operand, row)
            return None if value is None else -_number(node.operand, value)
        case ast.BinOp():
            return _sum(node, row)
        case ast.Compare():
            return _compared(node, row)
    raise AssertionError(node)


def _joined(node: ast.BoolOp, row: Mapping[str, Any]) -> bool | None:
    """Three-valued, as in SQL: ``false and null`` is false, ``true and null`` is not known."""
    deciding = isinstance(node.op, ast.Or)
    values = [_truth(one, row) for one in node.values]
    if deciding in values:
        return deciding
    return None if None in values else not deciding


def _truth(node: ast.expr, row: Mapping[str, Any]) -> bool | None:
    value = _value(node, row)
    if value is None or isinstance(value, bool):
        return value
    raise ConditionError(f"{ast.unparse(node)} is {_shown(value)}, which is not true or false")


def _number(node: ast.expr, value: Any) -> Any:
    if _kind(value) != "a number":
        raise ConditionError(f"{ast.unparse(node)} is {_kind(value)}, not a number")
    return value


def _sum(node: ast.BinOp, row: Mapping[str, Any]) -> Any:
    left, right = _value(node.left, row), _value(node.right, row)
    if left is None or right is None:
        return None
    try:
        return _SUMS[type(node.op)](_number(node.left, left), _number(node.right, right))
    except (ZeroDivisionError, OverflowError):
        return None


def _compared(node: ast.Compare, row: Mapping[str, Any]) -> bool | None:
    results = [
        _holds(left, op, right, row)
        for left, op, right in zip(
            [node.left, *node.comparators], node.ops, node.comparators, strict=False
        )
    ]
    if False in results:
        return False
    return None if None in results else True


def _holds(left: ast.expr, op: ast.cmpop, right: ast.expr, row: Mapping[str, Any]) -> bool | None:
    ours, theirs = _value(left, row), _value(right, row)
    if isinstance(op, ast.Is | ast.IsNot):
        return (ours is None) == isinstance(op, ast.Is)
    if ours is None or theirs is None:
        return None
    if isinstance(op, ast.In | ast.NotIn):
        return _contains(right, ours, theirs) == isinstance(op, ast.In)
    try:
        if _kind(ours) == _kind(theirs):
            return _SIGNS[type(op)][1](ours, theirs)
    except TypeError:  # such as that of two mappings, or of lists with different things in them
        pass
    raise ConditionError(
        f"{ast.unparse(left)} is {_kind(ours)} and {ast.unparse(right)} is {_kind(theirs)}: "
        "they cannot be compared"
    )


def _contains(node: ast.expr, value: Any, among: Any) -> bool:
    if isinstance(among, list):
        return any(_kind(one) == _kind(value) and one == value for one in among)
    if isinstance(among, str) and isinstance(value, str):
        return value in among
    raise ConditionError(f"nothing is in {ast.unparse(node)}, which is {_kind(among)}")


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return f"a {type(value).__name__}"


# What is said of a row that does not fulfil it


def _failure(node: ast.expr, row: Mapping[str, Any]) -> str | None:
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And):
        return next((said for one in node.values if (said := _failure(one, row))), None)
    if _truth(node, row) is True:
        return None
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return _comparison(node.left, node.ops[0], node.comparators[0], row)
    names = sorted({n.id for n in ast.walk(node) if isinstance(n, ast.Name)} - _WORDS.keys())
    values = ", ".join(f"{name} {_shown(row[name])}" for name in names)
    said = f"{ast.unparse(node)} does not hold"
    return f"{said}: {values}" if values else said


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr, row: Mapping[str, Any]) -> str:
    ours, theirs = _told(left, row), _told(right, row)
    match op:
        case ast.Is():
            return f"{ours} is not null"
        case ast.IsNot():
            return f"{ast.unparse(left)} is null"
        case ast.In():
            return f"{ours} is not in {theirs}"
        case ast.NotIn():
            return f"{ours} is in {theirs}"
    return f"{ours} is not {_SIGNS[type(op)][0]} {theirs}"


def _told(node: ast.expr, row: Mapping[str, Any]) -> str:
    """A part as it is written, with its value where that is not the same."""
    text = ast.unparse(node)
    is_literal = not any(
        isinstance(one, ast.Name) and one.id not in _WORDS for one in ast.walk(node)
    )
    return text if is_literal else f"{text} {_shown(_value(node, row))}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
