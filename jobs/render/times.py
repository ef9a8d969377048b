"""Sums over the rows of a render: time by stage, throughput, goodput, metrics."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs._shared.progress import duration

BARS = 60
METRIC = "metrics."
# A video's forwards at their fastest, and all of the gang's time, waiting for work included.
IDEAL, GANG = "metrics.ideal_s", "metrics.gang_s"
STAGES = ("render_s", "encode_s", "upload_s")
# Below this, a rate says nothing.
LEAST_SPAN_S = 60.0


@dataclass(frozen=True)
class Stage:
    """What a step of the work took, in seconds a video; perhaps within the others."""

    name: str
    within: bool
    median: float
    p90: float
    most: float
    share: float


def seconds(value: float) -> str:
    """'0.034 s', '1.28 s', '41.2 s', '12 min 5 s'."""
    if value >= 100:
        return duration(value)
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f} s"


def throughput(times: NDArray[np.float64]) -> dict[str, Any] | None:
    """Videos over time, an hour or a minute; None of less than LEAST_SPAN_S.

    Args:
        times: (N,) seconds since the epoch at which videos were committed, in order.
    """
    if len(times) < 2 or times[-1] - times[0] < LEAST_SPAN_S:
        return None
    counts, edges = np.histogram(times, bins=min(BARS, len(times)))
    width = edges[1] - edges[0]
    span = times[-1] - times[0]
    mean, peak = (len(times) - 1) / span, counts.max() / width
    unit, scale = ("a minute", 60) if mean * 60 >= 10 else ("an hour", 3600)
    return {
        "bars": [100 * count / counts.max() for count in counts.tolist()],
        "mean": f"{mean * scale:,.0f}",
        "peak": f"{peak * scale:,.0f}",
        "unit": unit,
        "each": seconds(width),
        "span": duration(span),
        "first": _clock(times[0]),
        "last": _clock(times[-1]),
    }


def goodput(rows: pa.Table) -> str | None:
    """The share of the gangs' time that forwards take at their fastest; None where no row tells."""
    if not {IDEAL, GANG} <= set(rows.column_names) or not (whole := known(rows[GANG]).sum()):
        return None
    return f"{known(rows[IDEAL]).sum() / whole:.0%}"


def _clock(time: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time)
    return f"{moment:%Y-%m-%d %H:%M}"


def stages(rows: pa.Table) -> list[Stage]:
    """Everything that a video went through: STAGES, and what metrics end in `_s`, in seconds."""
    inner = (name for name in _metrics(rows) if name.endswith("_s") and name not in (IDEAL, GANG))
    first, *others = STAGES  # rendering, and within it what else was timed
    names = [first, *(name for name in inner if _metric(name) not in STAGES), *others]
    values_of = {name: known(rows[name]) for name in names}
    whole = sum(values_of[name].sum() for name in STAGES)
    return [
        Stage(
            name=_metric(name).removesuffix("_s"),
            within=name not in STAGES,
            median=float(np.median(values)),
            p90=float(np.quantile(values, 0.9)),
            most=float(values.max()),
            share=float(100 * values.sum() / whole) if whole else 0.0,
        )
        for name, values in values_of.items()
        if len(values)
    ]


def measures(rows: pa.Table) -> list[tuple[str, int, float, float, float]]:
    """(name, how many, least, mean, most) of each metric that is no time."""
    values_of = {name: known(rows[name]) for name in _metrics(rows) if not name.endswith("_s")}
    return [
        (
            _metric(name),
            len(values),
            float(values.min()),
            float(values.mean()),
            float(values.max()),
        )
        for name, values in values_of.items()
        if len(values)
    ]


def _metrics(rows: pa.Table) -> Iterator[str]:
    return (name for name in rows.column_names if name.startswith(METRIC))


def _metric(column: str) -> str:
    return column.removeprefix(METRIC)


def known(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """The values that are there."""
    return column.drop_null().to_numpy()
