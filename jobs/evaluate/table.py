"""The table of an evaluation: a row a (method, pair), and its Parquet files."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

VERSION = "2"
FULL = "full"
OURS = ("fitted", "secant")
PAPER = "paper"

SCHEMA = pa.schema(
    [
        pa.field("method", pa.string(), nullable=False),
        pa.field("setting", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("schedule_id", pa.string()),
        pa.field("budget", pa.int32()),
        pa.field("nfe", pa.int32(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("share", pa.float64()),
        pa.field("psnr", pa.float64()),
        pa.field("ssim", pa.float64()),
        pa.field("lpips", pa.float64()),
        pa.field("flip", pa.float64()),
        pa.field("psnr_fine", pa.float64()),
        pa.field("seconds", pa.float64(), nullable=False),
    ],
    metadata={"schema": VERSION},
)
"""A row a (method, pair). `share`: transformer FLOPs of the run over the full run's; `psnr`,
`ssim`, `lpips`, `flip`: against the full run, null for itself; `psnr_fine`: dB against a fine
solution of the flow; `seconds`: of the denoising loop."""

TINY_SCHEMA = SCHEMA.insert(SCHEMA.get_field_index("seconds"), pa.field("caption", pa.float64()))
"""That of the embedded model, whose prompts are captions of known facts: the share of them that a
video shows, or null where a prompt is no such caption."""


def schema_of(captioned: bool) -> pa.Schema:
    """That of an evaluation whose prompts are the embedded model's captions, or of any other."""
    return TINY_SCHEMA if captioned else SCHEMA


def scoreboard(rows: Iterable[Mapping[str, Any]], schema: pa.Schema = SCHEMA) -> pa.Table:
    """The rows as one table of a schema, in an order that their content alone decides."""
    ordered = sorted(rows, key=lambda row: (*method_key(row), row["prompt_id"], row["seed"]))
    return pa.Table.from_pylist(ordered, schema)


def to_parquet(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def from_parquet(data: bytes) -> pa.Table:
    """Reads what `to_parquet` wrote. Raises ValueError where the bytes are not such a file."""
    try:
        table = pq.read_table(io.BytesIO(data))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"not a Parquet file: {error}") from error
    if not any(table.schema.equals(one, check_metadata=True) for one in (SCHEMA, TINY_SCHEMA)):
        raise ValueError(f"its columns are not those of an evaluation of schema {VERSION}")
    return table


def method_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells methods apart, so that sorting by it groups their rows."""
    return (*place(row["method"]), row["budget"] or 0, row["setting"] or "")


def place(method: str) -> tuple[int, str]:
    """Where a method stands among the others."""
    known = (*OURS, PAPER)
    order = known.index(method) if method in known else len(known) + (method == FULL)
    return (order, method)
