"""Columns of a prompts file that the job does not know: carried along, with their types.

They reach the manifest as `extra.NAME`. Types are those of the file: a Parquet column keeps its
own, a JSON value has JSON's, and a field of a CSV is text. Types that few readers of Parquet know
are written as what they are stored as: categories as their values, maps as lists of (key, value),
UUIDs as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cluster.work.values import PromptsError
from meancache.json_values import is_deep, shown

MAX_COLUMNS = 1000
MAX_NAME = 256


class ExtraError(Exception):
    """A value that cannot be carried along: its place among the rows, and what is wrong."""

    def __init__(self, row: int, sentence: str) -> None:
        super().__init__(sentence)
        self.row = row


@dataclass(frozen=True)
class Batch:
    """The columns to carry along of some rows.

    Attributes:
        place: of its first row, as messages call it.
        rows: how many there are, of which a table without columns does not know.
        table: the columns.
    """

    place: str
    rows: int
    table: pa.Table


def names_problem(names: Sequence[str]) -> str | None:
    """What is wrong with the names of columns that are to be carried along, or None."""
    if len(names) > MAX_COLUMNS:
        return f"{len(names)} columns beside those of a prompt, of which {MAX_COLUMNS} can be kept"
    for name in names:
        if not name.isprintable() or not 1 <= len(name) <= MAX_NAME:
            return f"the column name {shown(name)} must be 1 to {MAX_NAME} printable characters"
    return None


def of_values(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Python values as typed columns, null where a row has none.

    Raises:
        ExtraError: a value fits no type, or not that of the values before it.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if problem := names_problem(names):
        raise ExtraError(0, problem)
    columns = {name: _array(name, [row.get(name) for row in rows]) for name in names}
    return pa.table(columns)


def of_table(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Some columns of a Parquet file, in types that are widely read.

    Raises:
        ExtraError: a value is no text, or cannot be read.
    """
    columns = {name: _plain(name, table[name].combine_chunks()) for name in names}
    return pa.table(columns)


def joined(batches: Sequence[Batch]) -> pa.Table:
    """The rows of all batches as one table, null where a batch lacks a column.

    Raises:
        PromptsError: a column has types in two of them that have none in common.
    """
    kinds: dict[str, tuple[pa.DataType, str]] = {}
    for batch in batches:
        for field in batch.table.schema:
            there, where = kinds.get(field.name, (field.type, batch.place))
            common = _common(field.name, (there, where), (field.type, batch.place))
            kinds[field.name] = common, where
    schema = pa.schema([(name, _known(kind)) for name, (kind, _) in kinds.items()])
    return pa.concat_tables([_cast(batch, schema) for batch in batches])


def _cast(batch: Batch, schema: pa.Schema) -> pa.Table:
    table = batch.table
    try:
        columns = [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(batch.rows, field.type)
            for field in schema
        ]
    except pa.ArrowException as error:
        raise PromptsError(f"{batch.place}: a column mixes kinds of numbers: {error}") from error
    return pa.Table.from_arrays(columns, schema=schema)


def _common(name: str, one: tuple[pa.DataType, str], other: tuple[pa.DataType, str]) -> pa.DataType:
    """The type that holds the values of both exactly, where there is one."""
    schemas = [pa.schema([(name, kind)]) for kind, _ in (one, other)]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except pa.ArrowException:
        raise PromptsError(
            f"column {shown(name)} is {one[0]} in {one[1]} and {other[0]} in {other[1]}: give it "
            "one type"
        ) from None


def _known(kind: pa.DataType) -> pa.DataType:
    """A column without any value is one of text."""
    return pa.string() if pa.types.is_null(kind) else kind


def _array(name: str, values: Sequence[Any]) -> pa.Array:
    for row, value in enumerate(values):
        if is_deep(value):
            raise ExtraError(row, f"column {shown(name)} is nested too deep")
    try:
        return _plain(name, pa.array(values))
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        pass
    for row, value in enumerate(values):
        if not _fit([value]):
            raise ExtraError(row, f"column {shown(name)} cannot hold {shown(value)}")
    first = next(value for value in values if value is not None)
    other = next((row for row, value in enumerate(values) if not _fit([first, value])), 0)
    raise ExtraError(
        other, f"column {shown(name)} holds {shown(values[other])}, of another kind than before it"
    )


def _fit(values: Sequence[Any]) -> bool:
    """Whether there is a type that holds all these values."""
    try:
        pa.array(values)
    except (pa.ArrowException, ValueError, OverflowError, TypeError):
        return False
    return True


def _plain(name: str, array: pa.Array) -> pa.Array:
    """The array in a type that is widely read, its texts checked."""
    if isinstance(array.type, pa.UuidType):
        array = pa.array([None if one is None else str(one) for one in array.to_pylist()])
    try:
        array = array.cast(_plain_type(array.type))
        array.validate(full=True)
    except (pa.ArrowException, NotImplementedError) as error:
        raise ExtraError(_first(array, _is_damaged), f"column {shown(name)}: {error}") from None
    if _holds_nul(array):
        sentence = f"column {shown(name)} holds a NUL character; remove it"
        raise ExtraError(_first(array, _holds_nul), sentence)
    return array


def _plain_type(kind: pa.DataType) -> pa.DataType:
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_large_string(kind) or types.is_string_view(kind):
        return pa.string()
    if types.is_large_binary(kind) or types.is_binary_view(kind):
        return pa.binary()
    if types.is_map(kind):
        entry = [("key", _plain_type(kind.key_type)), ("value", _plain_type(kind.item_type))]
        return pa.list_(pa.struct(entry))
    if types.is_struct(kind):
        return pa.struct([(field.name, _plain_type(field.type)) for field in kind])
    if types.is_fixed_size_list(kind):
        return pa.list_(_plain_type(kind.value_type), kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind):
        return pa.list_(_plain_type(kind.value_type))
    return kind


def _holds_nul(array: pa.Array) -> bool:
    kind = array.type
    if pa.types.is_string(kind):
        return bool(pc.any(pc.match_substring(array, "\0")).as_py())
    if pa.types.is_struct(kind):
        return any(map(_holds_nul, array.flatten()))
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_nul(array.flatten())
    return False


def _is_damaged(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowException:
        return True
    return False


def _first(array: pa.Array, holds: Any) -> int:
    """The first row of which something holds; 0 where it holds of none alone."""
    rows = (row for row in range(len(array)) if holds(array.slice(row, 1)))
    return next(rows, 0)
