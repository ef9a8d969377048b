"""Reads a Parquet prompts file, a batch of rows at a time."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.work import extra
from cluster.work.extra import ExtraError
from cluster.work.pictures import IMAGE
from cluster.work.text_rows import Row
from cluster.work.values import EXACT_FLOAT
from meancache.json_values import shown

BATCH = 1024
# The same of a file whose cells hold pictures.
BATCH_OF_PICTURES = 64
# From here on a float does not hold every integer, by its type.
_EXACT = {pa.float16(): 2**11, pa.float32(): 2**24, pa.float64(): EXACT_FLOAT}


def parquet_batches(
    data: bytes,
    columns_problem: Callable[[Sequence[str]], str | None],
    is_known: Callable[[str], bool],
) -> Iterator[tuple[list[Row], pa.Table]]:
    """Batches of rows: the known columns as Python values, the others as a table beside them.

    Args:
        data: the file.
        columns_problem: the columns' names -> what is wrong with them, or None.
        is_known: whether a column of this name is read here.

    Yields:
        The rows, each perhaps a sentence that says what is wrong with it, and their other columns.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        names = [name or f"column_{n}" for n, name in enumerate(file.schema_arrow.names, start=1)]
        if problem := columns_problem(names):
            yield [problem], pa.table({})
            return
        known = [name for name in names if is_known(name)]
        others = [name for name in names if not is_known(name)]
        for batch in file.iter_batches(_batch(file.schema_arrow)):
            batch = batch.rename_columns(names)
            rows = list(_rows(batch.select(known)))
            try:
                yield rows, extra.of_table(pa.Table.from_batches([batch]), others)
            except ExtraError as error:
                rows[error.row] = str(error)
                yield rows, pa.table({})
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        yield [f"not a Parquet file that can be read ({shown(str(error))})"], pa.table({})


def _batch(schema: pa.Schema) -> int:
    """How many rows are in memory at once."""
    plain = IMAGE not in schema.names or pa.types.is_string(schema.field(IMAGE).type)
    return BATCH if plain else BATCH_OF_PICTURES


def _rows(batch: pa.RecordBatch) -> Iterator[Row]:
    """A batch's rows; where one cannot become Python's values, that one is named."""
    try:
        rows: Sequence[Row] = batch.to_pylist()
    except (ValueError, OverflowError):
        rows = [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]
    for name, limit in _inexact(batch.schema).items():
        rows = [_checked(row, name, limit) for row in rows]
    yield from rows


def _row(one: pa.RecordBatch) -> Row:
    try:
        return one.to_pylist()[0]
    except UnicodeDecodeError as error:
        return f"text that is not UTF-8, such as a lone surrogate ({error.reason})"
    except (ValueError, OverflowError) as error:
        return f"a value that cannot be read ({shown(str(error))})"


def _inexact(schema: pa.Schema) -> dict[str, int]:
    """The columns of ids and seeds that are floats, and where each ceases to hold every integer."""
    found = {
        name: schema.field(name).type for name in ("seed", "prompt_id") if name in schema.names
    }
    return {name: _EXACT[kind] for name, kind in found.items() if kind in _EXACT}


def _checked(row: Row, name: str, limit: int) -> Row:
    value: Any = None if isinstance(row, str) else row[name]
    if value is None or not math.isfinite(value) or abs(value) < limit:
        return row  # what is not finite is refused as such
    return f"{name} {shown(value)} is a float too large to be exact; write it as an integer"
