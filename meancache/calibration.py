"""How stable each possible jump is: per-trajectory statistics, and the multigraph made of them.

A reference trajectory of gigabytes shrinks to two small tables, in one streamed pass where the
trajectory lies: the paper's L1 cost of every edge (t, s, K) (eq. 13), and the Gram matrix of
the velocities, from which the squared cost of every linear estimator follows. Statistics are
keyed by (prompt_id, seed) and only ever averaged, so they merge in any order, and merging the
same trajectory twice changes nothing. Knows Parquet, but no store and no cluster.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from meancache.errors import CalibrationError
from meancache.grid import Grid
from meancache.json_values import MAX_DEPTH, canonical_json, is_deep, shown
from meancache.schedule import MAX_SPAN
from meancache.velocity import average_velocity, estimated_velocity

if TYPE_CHECKING:
    import torch

SCHEMA = "2"
# Bytes of residuals held at a time while streaming over a trajectory's elements.
SLICE_BYTES = 24 * 2**20
# What a graph file may unpack to; 30,000 trajectories of 50 steps.
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


@lru_cache(maxsize=4)
def edge_list(steps: int) -> tuple[tuple[int, int, int], ...]:
    """All edges (start, stop, span) of the multigraph over `steps` steps, in a fixed order.

    Span 1 (hold the velocity) is possible everywhere; a longer one needs that much history.
    """
    return tuple(
        (start, stop, span)
        for span in range(1, MAX_SPAN + 1)
        for start in range(0 if span == 1 else span, steps)
        for stop in range(start + 1, steps + 1)
    )


def edge_count(steps: int) -> int:
    """E, the length of `edge_list`, without making it."""
    return sum(
        left * (left + 1) // 2
        for left in (max(0, steps - (0 if span == 1 else span)) for span in range(1, MAX_SPAN + 1))
    )


@dataclass(frozen=True)
class Statistics:
    """What one reference trajectory says of every jump; under 200 KB for 50 steps.

    Attributes:
        prompt_id: whose trajectory it is; with `seed` its key.
        prompt: the text, from which the trajectory can be run again (`fitting`).
        seed: of the initial noise.
        elements: D, the elements of one velocity.
        gram: (T, T) float64, V V^T / D of the velocities V.
        l1: (E,) float64, mean absolute error of u_hat over the elements (eq. 13), per edge in
            the order of `edge_list`.

    Raises:
        CalibrationError: a table has the wrong shape, or holds a number that no trajectory gives.
    """

    prompt_id: str
    prompt: str
    seed: int
    elements: int
    gram: np.ndarray
    l1: np.ndarray

    def __post_init__(self) -> None:
        whose = f"{shown(self.prompt_id)}, seed {self.seed}"
        steps = len(self.gram)
        if self.gram.shape != (steps, steps) or self.l1.shape != (edge_count(steps),):
            raise CalibrationError(
                f"the statistics of {whose}, have shapes {self.gram.shape} and {self.l1.shape}, "
                "which do not belong together"
            )
        # Squares of what is summed must stay finite too.
        bound = np.sqrt(np.finfo(np.float64).max)
        if not ((np.abs(self.gram) < bound).all() and (np.abs(self.l1) < bound).all()):
            raise CalibrationError(
                f"the trajectory of {whose}, is not finite: its run diverged, so it says nothing "
                "about stability"
            )
        if self.elements < 1 or (self.l1 < 0).any() or (self.gram.diagonal() < 0).any():
            raise CalibrationError(
                f"the statistics of {whose}, hold a negative mean of squares or sizes, or no "
                "elements: they are of no trajectory"
            )

    @property
    def key(self) -> tuple[str, int]:
        """(prompt_id, seed): two statistics with one key are the same trajectory."""
        return (self.prompt_id, self.seed)


@lru_cache(maxsize=4)
def _residuals(grid: Grid) -> np.ndarray:
    """R (E, T) float64: row e times the velocities is u(t, s) - u_hat(t, s, K) of the edge e."""
    sigmas = grid.array()
    return np.stack(
        [
            average_velocity(sigmas, start, stop) - estimated_velocity(sigmas, start, stop, span)
            for start, stop, span in edge_list(grid.num_inference_steps)
        ]
    )


def trajectory_statistics(
    velocities: torch.Tensor, grid: Grid, prompt_id: str, seed: int, prompt: str = ""
) -> Statistics:
    """The statistics of one reference trajectory, in one pass over its elements.

    Every residual u(t, s) - u_hat(t, s, K) is a fixed combination of the velocities, so all of
    them are rows of R V with R (E, T) from the grid alone; they are formed slice by slice and
    never stored whole.

    Args:
        velocities: (T, D) float32 on any device, from `Trajectory.velocities`.
        grid: the noise levels of the run.
        prompt_id: whose trajectory it is.
        seed: of its initial noise.
        prompt: its text, where it is to be run again.

    Raises:
        CalibrationError: `velocities` has not T rows, or is not finite.
    """
    import torch  # which graphs are read, merged and solved without

    steps, elements = velocities.shape
    if steps != grid.num_inference_steps:
        raise CalibrationError(f"{steps} velocities do not fit a grid of {grid}")
    device = velocities.device
    residual = torch.from_numpy(_residuals(grid)).to(device, torch.float32)
    velocities = velocities.detach()
    gram = torch.zeros(steps, steps, dtype=torch.float64, device=device)
    l1 = torch.zeros(len(residual), dtype=torch.float64, device=device)
    for part in velocities.split(max(1, SLICE_BYTES // (4 * len(residual))), dim=1):
        wide = part.to(torch.float64)
        gram += wide @ wide.T
        # Short enough to be added up in float32, and to stay in a CPU's cache.
        l1 += torch.linalg.vector_norm(residual @ part, 1, dim=1)
    return Statistics(
        prompt_id=prompt_id,
        prompt=prompt,
        seed=seed,
        elements=elements,
        gram=(gram / elements).cpu().numpy(),
        l1=(l1 / elements).cpu().numpy(),
    )


@dataclass(frozen=True)
class Calibration:
    """The statistics of many trajectories of one model under one set of conditions.

    Attributes:
        grid: the noise levels of every trajectory.
        model: {id, revision, pipeline}.
        conditions: {height, width, num_frames, guidance_scale, dtype, lora}.
        trajectories: key -> statistics, one entry a (prompt_id, seed).
    """

    grid: Grid
    model: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    trajectories: Mapping[tuple[str, int], Statistics] = field(default_factory=dict)

    def __post_init__(self) -> None:
        steps = self.grid.num_inference_steps
        for statistics in self.trajectories.values():
            if len(statistics.gram) != steps:
                raise CalibrationError(
                    f"the trajectory of {shown(statistics.prompt_id)}, seed {statistics.seed}, has "
                    f"{len(statistics.gram)} steps; the graph's grid has {steps}"
                )

    def add(self, statistics: Iterable[Statistics]) -> Calibration:
        """This graph with more trajectories; those already in it stay as they are."""
        added = {item.key: item for item in statistics}
        merged = {**added, **self.trajectories}
        ordered = {key: merged[key] for key in sorted(merged)}
        return Calibration(self.grid, self.model, self.conditions, ordered)

    def merge(self, other: Calibration) -> Calibration:
        """Both graphs' trajectories, each once.

        Raises:
            CalibrationError: the graphs differ in model, conditions or grid; names the field.
        """
        for name in ("model", "conditions"):
            mine, theirs = getattr(self, name), getattr(other, name)
            for key in sorted({*mine, *theirs}):
                if mine.get(key) != theirs.get(key):
                    raise CalibrationError(
                        f"the graphs differ in {name}.{shown(key)[1:-1]}: "
                        f"{shown(mine.get(key))} and {shown(theirs.get(key))}; only trajectories "
                        "of one setting can be merged"
                    )
        if not self.grid.matches(other.grid.sigmas):
            raise CalibrationError(f"the graphs' grids differ: {self.grid} and {other.grid}")
        return self.add(other.trajectories.values())

    @property
    def id(self) -> str:
        """sha256 over the setting and all statistics, 64 hex digits."""
        digest = hashlib.sha256(canonical_json(self._setting()))
        for key in sorted(self.trajectories):
            item = self.trajectories[key]
            digest.update(canonical_json([item.prompt_id, item.prompt, item.seed, item.elements]))
            digest.update(item.gram.tobytes())
            digest.update(item.l1.tobytes())
        return digest.hexdigest()

    def costs(self) -> np.ndarray:
        """The paper's cost of every edge, averaged over the trajectories (eq. 13).

        Returns:
            (MAX_SPAN, T, T + 1) float64: costs[span - 1, start, stop], inf where no edge is.

        Raises:
            CalibrationError: the graph has no trajectory.
        """
        steps = self.grid.num_inference_steps
        start, stop, span = np.array(edge_list(steps)).T
        costs = np.full((MAX_SPAN, steps, steps + 1), np.inf)
        costs[span - 1, start, stop] = np.mean([item.l1 for item in self._nonempty()], axis=0)
        return costs

    def gram(self) -> np.ndarray:
        """V V^T / D averaged over the trajectories: every squared cost follows (`costs`).

        Returns:
            (T, T) float64.

        Raises:
            CalibrationError: the graph has no trajectory.
        """
        return np.mean([item.gram for item in self._nonempty()], axis=0)

    def spread(self, count: int) -> list[Statistics]:
        """Up to `count` trajectories that can be run again, evenly spread over all of them.

        Raises:
            CalibrationError: no trajectory holds its prompt.
        """
        known = [item for item in self._nonempty() if item.prompt]
        if not known:
            raise CalibrationError(
                "the graph holds no prompts to run again: calibrate it anew, or solve with "
                "--method secant, which runs no model"
            )
        count = min(count, len(known))
        return [known[index * len(known) // count] for index in range(count)]

    def _nonempty(self) -> list[Statistics]:
        if not self.trajectories:
            raise CalibrationError("the graph has no trajectory; calibrate at least one prompt")
        return [self.trajectories[key] for key in sorted(self.trajectories)]

    def _setting(self) -> dict[str, Any]:
        return {
            "model": dict(self.model),
            "grid": self.grid.to_json(),
            "conditions": dict(self.conditions),
        }

    def _metadata(self) -> dict[bytes, bytes]:
        return {
            b"schema": SCHEMA.encode(),
            b"setting": canonical_json(self._setting()),
            b"id": self.id.encode(),
        }

    def statistics_parquet(self) -> bytes:
        """The statistics, a row a trajectory (STATISTICS_SCHEMA); what `from_parquet` reads."""
        rows = [
            {
                "prompt_id": item.prompt_id,
                "prompt": item.prompt,
                "seed": item.seed,
                "elements": item.elements,
                "gram": item.gram.ravel(),
                "l1": item.l1,
            }
            for item in (self.trajectories[key] for key in sorted(self.trajectories))
        ]
        table = pa.Table.from_pylist(rows, STATISTICS_SCHEMA.with_metadata(self._metadata()))
        return _parquet(table)

    def multigraph_parquet(self) -> bytes:
        """The merged multigraph as an edge table (MULTIGRAPH_SCHEMA), for people and plots."""
        start, stop, span = np.array(edge_list(self.grid.num_inference_steps)).T
        l1 = np.stack([item.l1 for item in self._nonempty()])
        columns = [start, stop, span, l1.mean(axis=0), l1.max(axis=0)]
        counts = np.full(len(start), len(l1))
        arrays = [
            pa.array(column, type=column_field.type)
            for column, column_field in zip([*columns, counts], MULTIGRAPH_SCHEMA, strict=True)
        ]
        schema = MULTIGRAPH_SCHEMA.with_metadata(self._metadata())
        return _parquet(pa.Table.from_arrays(arrays, schema=schema))

    @classmethod
    def from_parquet(cls, data: bytes) -> Calibration:
        """Reads what `statistics_parquet` wrote.

        Raises:
            CalibrationError: the bytes are not such a file, or its content breaks a rule.
        """
        try:
            file = pq.ParquetFile(io.BytesIO(data))
            metadata = file.schema_arrow.metadata or {}
            if metadata.get(b"schema") != SCHEMA.encode():
                raise CalibrationError(f"the graph's schema is not version {SCHEMA}")
            if not file.schema_arrow.equals(STATISTICS_SCHEMA, check_metadata=False):
                raise CalibrationError("the graph's columns are not those of trajectory statistics")
            setting = json.loads(metadata[b"setting"])
            if is_deep(setting):
                raise CalibrationError(
                    f"the graph's setting is nested in more than {MAX_DEPTH} levels"
                )
            for name in ("model", "grid", "conditions"):
                if not isinstance(setting[name], dict):
                    raise CalibrationError(f"the graph's {name} must be a JSON object")
            grid = Grid.from_json(setting["grid"])
            graph = cls(grid, setting["model"], setting["conditions"]).add(
                _trajectories(file, grid.num_inference_steps)
            )
            if metadata.get(b"id") != graph.id.encode():
                raise CalibrationError(
                    "the graph's content does not have its id: the file is damaged"
                )
            return graph
        except CalibrationError:
            raise
        except (*_UNREADABLE, pa.ArrowException) as error:
            raise CalibrationError(
                f"not a graph of trajectory statistics: {shown(str(error))}"
            ) from error


def _trajectories(file: pq.ParquetFile, steps: int) -> Iterator[Statistics]:
    """The rows of a statistics file. A few kilobytes can unpack to any size, so that is bounded."""
    # Of the metadata no more than this: pyarrow 26 ends the process on a damaged column's.
    values = file.metadata.num_rows * (steps**2 + edge_count(steps))
    too_large = CalibrationError(
        f"the graph unpacks to more than {MAX_BYTES} bytes; calibrate fewer"
    )
    if 8 * values > MAX_BYTES:
        raise too_large
    unpacked = 0
    for batch in file.iter_batches(BATCH):
        unpacked += batch.nbytes
        if unpacked > MAX_BYTES:  # by its texts or lists, of which the file need not say the length
            raise too_large
        for row in batch.to_pylist():
            if (len(row["gram"]), len(row["l1"])) != (steps**2, edge_count(steps)):
                raise CalibrationError(f"a row does not hold the statistics of {steps} steps")
            yield Statistics(
                prompt_id=row["prompt_id"],
                prompt=row["prompt"],
                seed=row["seed"],
                elements=row["elements"],
                gram=np.array(row["gram"], dtype=np.float64).reshape(steps, steps),
                l1=np.array(row["l1"], dtype=np.float64),
            )


# What a damaged file makes of its readers.
_UNREADABLE = (OSError, LookupError, TypeError, ValueError, RecursionError)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
