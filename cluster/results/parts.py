"""The files of a manifest: their columns, and rows as Parquet and back.

A part has the columns of SCHEMA, which is flat, as not every reader knows maps; behind them, where
rows have images, IMAGES, and then one for each other column of the prompts file, `extra.NAME`, with
its own type. Roots that were begun
before have parts of SCHEMA_1, whose metrics are a map; they stay of that kind, and are read as the
others.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.work.pictures import COLUMNS as IMAGES
from cluster.work.rows import EXTRA, TOKENS

METRIC = "metrics."
# What a row's metrics may hold; the last two are those of an audited row.
METRICS = ("text_s", "denoise_s", "decode_s", "gang_s", "ideal_s", "psnr", "ssim")

_FIRST = [
    pa.field("item_id", pa.string(), nullable=False),
    pa.field("prompt_id", pa.string(), nullable=False),
    pa.field("prompt", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("uri", pa.string()),
    pa.field("key", pa.string()),
    pa.field("sha256", pa.string()),
    pa.field("model", pa.string(), nullable=False),
    pa.field("model_revision", pa.string(), nullable=False),
    pa.field("schedule_id", pa.string()),
    pa.field("error", pa.string()),
    pa.field("index", pa.int64(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("bytes", pa.int64()),
    pa.field("shard", pa.int32(), nullable=False),
    pa.field("num_frames", pa.int32(), nullable=False),
    pa.field("width", pa.int32(), nullable=False),
    pa.field("height", pa.int32(), nullable=False),
    pa.field("num_inference_steps", pa.int32(), nullable=False),
    pa.field("nfe", pa.int32()),
    pa.field("world_size", pa.int32(), nullable=False),
    pa.field("attempts", pa.int32(), nullable=False),
    pa.field("fps", pa.float32(), nullable=False),
    pa.field("render_s", pa.float64()),
    pa.field("encode_s", pa.float64()),
    pa.field("upload_s", pa.float64()),
]
_CREATED_AT = pa.field("created_at", pa.timestamp("us", tz="UTC"), nullable=False)

SCHEMA = pa.schema(
    [
        *_FIRST,
        *(pa.field(METRIC + name, pa.float64()) for name in METRICS),
        *(pa.field(name, pa.int32()) for name in TOKENS),
        _CREATED_AT,
    ],
    metadata={b"schema": b"2"},
)
SCHEMA_1 = pa.schema(
    [
        *_FIRST,
        pa.field("metrics", pa.map_(pa.string(), pa.float64()), nullable=False),
        _CREATED_AT,
    ],
    metadata={b"schema": b"1"},
)
RECEIPT = tuple(SCHEMA_1.names)
"""What a receipt holds, besides the arguments of its item's call."""
OF_THE_ROW = ("index", "prompt_id")
"""Columns that rows of one item may differ in, besides those beside."""


def to_parquet(
    rows: Sequence[Mapping[str, Any]],
    beside: pa.Table | None = None,
    schema: pa.Schema = SCHEMA,
    first: int = 0,
) -> bytes:
    """Rows of receipts as a Parquet file, in the order of their indices.

    Args:
        rows: each as a receipt holds it, with its own index and prompt_id.
        beside: the columns that a plan has for its rows, tokens and `extra.NAME`, by index.
        schema: SCHEMA, or SCHEMA_1 in a root that was begun with it.
        first: the index of the first row of `beside`.
    """
    sink = io.BytesIO()
    pq.write_table(to_table(rows, beside, schema, first), sink, compression="zstd")
    return sink.getvalue()


def to_table(
    rows: Sequence[Mapping[str, Any]],
    beside: pa.Table | None = None,
    schema: pa.Schema = SCHEMA,
    first: int = 0,
) -> pa.Table:
    """What `to_parquet` writes of the same rows."""
    rows = sorted(rows, key=lambda row: row["index"])
    records = []
    for row in rows:
        metrics = row["metrics"]
        records.append(
            {
                **row,
                "metrics": list(metrics.items()),
                **{METRIC + name: metrics.get(name) for name in METRICS},
                "created_at": datetime.fromisoformat(row["created_at"]),
            }
        )
    table = pa.Table.from_pylist(records, schema=schema)
    if beside is not None and schema is SCHEMA:
        own = beside.take(pa.array([row["index"] - first for row in rows], pa.int64()))
        for field in own.schema:
            place = schema.get_field_index(field.name)
            column = own[field.name].combine_chunks()
            if place < 0:
                table = table.append_column(field, column)
            else:
                table = table.set_column(place, schema.field(place), column)
        table = table.replace_schema_metadata(schema.metadata)
    return table


def read_rows(data: bytes) -> list[dict[str, Any]]:
    """The rows of one part, without `extra.NAME`. Raises ValueError as `read_table` does."""
    return without_extra(read_table(data)).to_pylist()


def without_extra(table: pa.Table) -> pa.Table:
    """A part without the columns of the prompts file, whose types Python may not have."""
    return table.select([name for name in table.column_names if not name.startswith(EXTRA)])


def read_table(data: bytes) -> pa.Table:
    """One part; that of an earlier root with a column for each of its metrics, as those of SCHEMA.

    Raises:
        ValueError: the bytes are not a Parquet file of one of the schemas.
    """
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    if table.schema.equals(SCHEMA_1):
        return _flattened(table)
    names = table.column_names
    known, others = names[: len(SCHEMA)], names[len(SCHEMA) :]
    if others[: len(IMAGES)] == [*IMAGES]:
        others = others[len(IMAGES) :]
    if not table.select(known).schema.equals(SCHEMA) or not all(
        name.startswith(EXTRA) for name in others
    ):
        raise ValueError("its columns are not those of a manifest part")
    return table


def _flattened(table: pa.Table) -> pa.Table:
    """A part of SCHEMA_1 with its map as columns."""
    metrics = table["metrics"]
    names = sorted({name for chunk in metrics.chunks for name in chunk.keys.unique().to_pylist()})
    table = table.drop_columns(["metrics"])
    for name in names:
        table = table.append_column(METRIC + name, pc.map_lookup(metrics, name, "first"))
    return table


def first_of_each_item(table: pa.Table, seen: set[str] | None = None) -> pa.Table:
    """The rows of a part without those that share the video of one before them.

    Args:
        table: the part.
        seen: the items of the parts before it, to which those of this one are added; None where
            only rows of the same part share videos.
    """
    seen = set() if seen is None else seen
    ids = table["item_id"].to_pylist()
    firsts = [n for n, one in enumerate(ids) if not (one in seen or seen.add(one))]  # type: ignore[func-returns-value]
    return table if len(firsts) == len(ids) else table.take(firsts)
