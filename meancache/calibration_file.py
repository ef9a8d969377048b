"""Calibrations as Parquet: a row a trajectory, and the merged multigraph as an edge table.

A calibration is a file that people exchange, so it is checked at the door and bounded in what it
may unpack to. Knows Parquet, but no store and no cluster.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meancache.errors import CalibrationError
from meancache.grid import Grid
from meancache.json_values import MAX_DEPTH, canonical_json, is_deep, shown
from meancache.statistics import Statistics, edge_count, edge_list

if TYPE_CHECKING:
    from meancache.calibration import Calibration

# A calibration with levels below its run's is "3"; one without stays readable by what wrote "2".
SCHEMA = "3"
PLAIN_SCHEMA = "2"
# What a file may unpack to; 30,000 trajectories of 50 steps.
MAX_BYTES = 2 * 2**30
# Trajectories unpacked at a time.
BATCH = 64

STATISTICS_SCHEMA = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("elements", pa.int64(), nullable=False),
        pa.field("gram", pa.list_(pa.float64()), nullable=False),
        pa.field("l1", pa.list_(pa.float64()), nullable=False),
    ]
)
MULTIGRAPH_SCHEMA = pa.schema(
    [
        pa.field("start", pa.int32(), nullable=False),
        pa.field("stop", pa.int32(), nullable=False),
        pa.field("span", pa.int32(), nullable=False),
        pa.field("cost_mean", pa.float64(), nullable=False),
        pa.field("cost_max", pa.float64(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)
# What a damaged file makes of its readers.
_UNREADABLE = (OSError, LookupError, TypeError, ValueError, RecursionError)


def statistics_table(calibration: Calibration) -> bytes:
    """The statistics, a row a trajectory (STATISTICS_SCHEMA); what `read` reads."""
    rows = [
        {
            "prompt_id": item.prompt_id,
            "prompt": item.prompt,
            "seed": item.seed,
            "elements": item.elements,
            "gram": item.gram.ravel(),
            "l1": item.l1,
        }
        for item in calibration.ordered()
    ]
    schema = STATISTICS_SCHEMA.with_metadata(_metadata(calibration))
    return _parquet(pa.Table.from_pylist(rows, schema))


def multigraph_table(calibration: Calibration) -> bytes:
    """The merged multigraph (MULTIGRAPH_SCHEMA). Raises CalibrationError where it is empty."""
    start, stop, span = np.array(edge_list(calibration.grid.num_inference_steps)).T
    l1 = np.stack([item.l1 for item in calibration.nonempty()])
    columns = [start, stop, span, l1.mean(axis=0), l1.max(axis=0)]
    counts = np.full(len(start), len(l1))
    arrays = [
        pa.array(column, type=column_field.type)
        for column, column_field in zip([*columns, counts], MULTIGRAPH_SCHEMA, strict=True)
    ]
    schema = MULTIGRAPH_SCHEMA.with_metadata(_metadata(calibration))
    return _parquet(pa.Table.from_arrays(arrays, schema=schema))


def read(kind: type[Calibration], data: bytes) -> Calibration:
    """Reads what `statistics_table` wrote.

    Raises:
        CalibrationError: the bytes are not such a file, or its content breaks a rule.
    """
    try:
        file = pq.ParquetFile(io.BytesIO(data))
        metadata = file.schema_arrow.metadata or {}
        schema = metadata.get(b"schema")
        if schema not in (SCHEMA.encode(), PLAIN_SCHEMA.encode()):
            raise CalibrationError(
                f"the calibration's schema is not version {PLAIN_SCHEMA} or {SCHEMA}"
            )
        if not file.schema_arrow.equals(STATISTICS_SCHEMA, check_metadata=False):
            raise CalibrationError(
                "the calibration's columns are not those of trajectory statistics"
            )
        setting = _setting(metadata[b"setting"])
        grid = Grid.from_json(setting["grid"])
        below = tuple(map(float, setting["below"])) if schema == SCHEMA.encode() else ()
        empty = kind(grid, setting["model"], setting["conditions"], below=below)
        calibration = empty.add(
            _trajectories(file, grid.num_inference_steps, empty.recorded.num_inference_steps)
        )
        if metadata.get(b"id") != calibration.id.encode():
            raise CalibrationError(
                "the calibration's content does not have its id: the file is damaged"
            )
        return calibration
    except CalibrationError:
        raise
    except (*_UNREADABLE, pa.ArrowException) as error:
        raise CalibrationError(
            f"not a calibration of trajectory statistics: {shown(str(error))}"
        ) from error


def _setting(text: bytes) -> dict[str, Any]:
    setting: dict[str, Any] = json.loads(text)
    if is_deep(setting):
        raise CalibrationError(
            f"the calibration's setting is nested in more than {MAX_DEPTH} levels"
        )
    for name in ("model", "grid", "conditions"):
        if not isinstance(setting[name], dict):
            raise CalibrationError(f"the calibration's {name} must be a JSON object")
    return setting


def _trajectories(file: pq.ParquetFile, steps: int, levels: int) -> Iterator[Statistics]:
    """The rows of a file. A few kilobytes can unpack to any size, so that is bounded."""
    # No more of the metadata is read: pyarrow 26 ends the process on that of a damaged column.
    values = file.metadata.num_rows * (levels**2 + edge_count(steps))
    too_large = CalibrationError(
        f"the calibration unpacks to more than {MAX_BYTES} bytes; calibrate fewer"
    )
    if 8 * values > MAX_BYTES:
        raise too_large
    unpacked = 0
    for batch in file.iter_batches(BATCH):
        unpacked += batch.nbytes
        if unpacked > MAX_BYTES:  # by its texts or lists, of which the file need not say the length
            raise too_large
        for row in batch.to_pylist():
            if (len(row["gram"]), len(row["l1"])) != (levels**2, edge_count(steps)):
                raise CalibrationError(f"a row does not hold the statistics of {steps} steps")
            yield Statistics(
                prompt_id=row["prompt_id"],
                prompt=row["prompt"],
                seed=row["seed"],
                elements=row["elements"],
                gram=np.array(row["gram"], dtype=np.float64).reshape(levels, levels),
                l1=np.array(row["l1"], dtype=np.float64),
            )


def _metadata(calibration: Calibration) -> dict[bytes, bytes]:
    return {
        b"schema": (SCHEMA if calibration.below else PLAIN_SCHEMA).encode(),
        b"setting": canonical_json(calibration.setting()),
        b"id": calibration.id.encode(),
    }


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
