"""Conditions on a table's rows, as text: "metrics.caption >= 0.9 and num_frames == 9".

Python's parser reads the text and Arrow computes it. Nothing but comparisons and logic is let in,
so a condition decides which rows there are and does nothing else, and always decides the same. SQL
would say more, `random()` and `now()` among it, with which a resumed export would find other rows.
"""

from __future__ import annotations

import ast
import functools
import itertools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from meancache.errors import InputError
from meancache.json_values import shown

EXAMPLE = "metrics.denoise_s < 2.5 and 'circle' in prompt"
# Python's parser is written for programs that are trusted not to exhaust it.
MOST_CHARACTERS = 10_000
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: pc.equal,
    ast.NotEq: pc.not_equal,
    ast.Lt: pc.less,
    ast.LtE: pc.less_equal,
    ast.Gt: pc.greater,
    ast.GtE: pc.greater_equal,
}


class WhereError(InputError):
    """A condition cannot be used; the message says what it may be made of."""


def where(table: pa.Table, condition: str) -> pa.Table:
    """The rows for which a condition holds, in their order.

    A condition is made of columns (`num_frames`, `metrics.caption`, or `metrics["a b"]` where a
    name is no word), numbers, texts in quotes, `== != < <= > >=`, `in` (one of several values, or a
    text within a text), `is None`, and `and`, `or`, `not`. Times are texts such as
    "2026-01-31 12:00", UTC. As in SQL, a comparison with a value that is absent holds for no row,
    and neither does its opposite.

    Args:
        table: columns of texts, numbers and times; that of a metric is named `metrics.NAME`.
        condition: the text.

    Raises:
        WhereError: it is no condition, names a column that is not there, or compares what cannot
            be compared.
    """
    try:
        if len(condition) > MOST_CHARACTERS:
            raise ValueError(f"more than {MOST_CHARACTERS} characters")
        tree = ast.parse(condition.strip(), mode="eval").body
        return table.filter(_truth(table, tree))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, WhereError):
            raise
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise WhereError(
            f"the condition {shown(condition)} cannot be read ({said}): write one such as "
            f"{EXAMPLE}, with == for equal"
        ) from None


def _truth(table: pa.Table, node: ast.expr) -> Any:
    """Whether a condition holds, a boolean a row, null where it is unknown."""
    match node:
        case ast.BoolOp(op=op, values=values):
            combine = pc.and_kleene if isinstance(op, ast.And) else pc.or_kleene
            return functools.reduce(combine, [_truth(table, value) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return pc.invert(_truth(table, operand))
        case ast.Compare(left=left, ops=ops, comparators=others):
            pairs = itertools.pairwise([left, *others])
            found = [_compared(table, a, op, b) for (a, b), op in zip(pairs, ops, strict=True)]
            return functools.reduce(pc.and_kleene, found)
    raise WhereError(f"{_text(node)} is no condition: compare a column, as in {EXAMPLE}")


def _compared(table: pa.Table, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Any:
    """One comparison, a boolean a row."""
    match op:
        case ast.Is() | ast.IsNot() if isinstance(right, ast.Constant) and right.value is None:
            unknown = pc.is_null(_column(table, left))
            return unknown if isinstance(op, ast.Is) else pc.invert(unknown)
        case ast.In() | ast.NotIn():
            within = _within(table, left, right)
            return within if isinstance(op, ast.In) else pc.invert(within)
        case _ if type(op) in _COMPARISONS:
            return _COMPARISONS[type(op)](*_operands(table, left, right))
    raise WhereError(f"{_text(right)} cannot stand after `is`: only None can")


def _within(table: pa.Table, left: ast.expr, right: ast.expr) -> Any:
    if isinstance(right, ast.List | ast.Tuple | ast.Set) and right.elts:
        equal = [pc.equal(*_operands(table, left, one)) for one in right.elts]
        return functools.reduce(pc.or_kleene, equal)
    part = _constant(left)
    column = _column(table, right)
    if not isinstance(part, str) or not pa.types.is_string(column.type):
        raise WhereError(f"{_text(left)} cannot be within {_text(right)}: only text is within text")
    return pc.match_substring(column, part)


def _operands(table: pa.Table, left: ast.expr, right: ast.expr) -> Sequence[Any]:
    """What stands on both sides, of types that Arrow compares: columns, or a column and a value."""
    constants = [_constant(left), _constant(right)]
    if None not in constants:
        raise WhereError(f"{_text(left)} and {_text(right)} are both values: name a column")
    columns = [
        _column(table, node) if value is None else None
        for node, value in zip((left, right), constants, strict=True)
    ]
    kinds = [column.type for column in columns if column is not None]
    if len({_kind(kind) for kind in kinds}) > 1:
        raise WhereError(f"{_text(left)} is {_kind(kinds[0])}, {_text(right)} {_kind(kinds[1])}")
    if any(map(pa.types.is_floating, kinds)) or any(isinstance(one, float) for one in constants):
        # Arrow refuses to compare a large integer with a float that cannot hold all its digits.
        columns = [_as_floats(column) for column in columns]
        kinds = [column.type for column in columns if column is not None]
    return [
        column if column is not None else _fitted(value, kinds[0], node)
        for column, value, node in zip(columns, constants, (left, right), strict=True)
    ]


def _as_floats(column: pa.ChunkedArray | None) -> pa.ChunkedArray | None:
    """An integer column as floats; another as it is."""
    if column is None or not pa.types.is_integer(column.type):
        return column
    return column.cast(pa.float64(), safe=False)


def _column(table: pa.Table, node: ast.expr) -> pa.ChunkedArray:
    match node:
        case ast.Name(id=name):
            pass
        case (
            ast.Attribute(value=ast.Name(id="metrics"), attr=metric)
            | ast.Subscript(value=ast.Name(id="metrics"), slice=ast.Constant(value=str(metric)))
        ):
            name = f"metrics.{metric}"
        case _:
            raise WhereError(f"{_text(node)} is no column: write one as in {EXAMPLE}")
    if name not in table.column_names:
        raise WhereError(
            f"there is no column {shown(name)}; there are {', '.join(table.column_names)}"
        )
    return table[name]


def _constant(node: ast.expr) -> int | float | str | None:
    """The number or text that stands there; None where nothing such does."""
    match node:
        case ast.Constant(value=int() | float() | str() as value) if not isinstance(value, bool):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Constant():
            raise WhereError(f"{_text(node)} is neither a number nor a text")
    return None


def _fitted(value: int | float | str | None, kind: pa.DataType, node: ast.expr) -> pa.Scalar:
    """A value as a column's type holds it: 23.976 is equal to what float32 makes of it."""
    try:
        if pa.types.is_timestamp(kind) and isinstance(value, str):
            time = datetime.fromisoformat(value)
            return pa.scalar(time if time.tzinfo else time.replace(tzinfo=UTC), kind)
        if pa.types.is_string(kind) and isinstance(value, str):
            return pa.scalar(value, kind)
        if pa.types.is_integer(kind) and isinstance(value, int):
            return pa.scalar(value, pa.int64())
        if pa.types.is_floating(kind) and isinstance(value, int | float):
            return pa.scalar(float(value), kind)
    except (ValueError, OverflowError, pa.ArrowException):
        pass
    raise WhereError(f"{_text(node)} is no value of a column of {_kind(kind)}s")


def _kind(kind: pa.DataType) -> str:
    if pa.types.is_timestamp(kind):
        return "time"
    return "text" if pa.types.is_string(kind) else "number"


def _text(node: ast.expr) -> str:
    """A part of the condition, as messages repeat it."""
    return shown(ast.unparse(node))
