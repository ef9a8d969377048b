"""The page of a render job: what it rendered, how fast, what failed, how to render any row again.

A pure function of the manifest and the videos, so that a resumed job writes the same page. It is
derived and may be replaced; nothing that is committed is. However many rows there are, it holds a
sample of the videos and sums of the rest.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from cluster.media import image, video
from cluster.results import attempts, manifest
from cluster.results.datasets import dataset
from cluster.results.manifest import at_once
from cluster.store import Store, StoreError
from cluster.work import plan
from jobs._shared import pages
from jobs._shared.pictures import animation
from jobs._shared.progress import QUIET_S, duration, progress
from meancache.errors import ScheduleError
from meancache.schedule import Schedule

REPORT_KEY = "report.html"
SAMPLES = 24
# Of a sampled video: pixels of its longer edge, and frames.
SIDE, FRAMES = 256, 12
BARS = 60
# Of reasons, how many are told, each with so many items, and how many failed attempts are read.
REASONS, NAMED, ATTEMPTS_READ = 12, 3, 500
LONGEST_TEXT = 240
METRIC = "metrics."
# Of a video, the gang's time in its denoising loop, and all of it, waiting for work included.
DENOISE, GANG = "metrics.denoise_s", "metrics.gang_s"
STAGES = ("render_s", "encode_s", "upload_s")
_SUMMED = (*STAGES, "created_at", "attempts", "nfe", "bytes", "metrics")


@dataclass(frozen=True)
class Sample:
    """A row of the gallery.

    Attributes:
        row: of the manifest.
        moving: the video as a small animation, a data URI; None where it could not be read.
        still: its first frame.
    """

    row: Mapping[str, Any]
    moving: str | None
    still: str | None


@dataclass(frozen=True)
class Stage:
    """What a step of the work took, in seconds a video; perhaps within the others."""

    name: str
    within: bool
    median: float
    p90: float
    most: float
    share: float


@dataclass(frozen=True)
class Reason:
    """Why something failed, how often, and for which items."""

    text: str
    count: int
    items: Sequence[str]


def write_page(store: Store) -> str:
    """Writes the page of a finished job; returns where it is.

    Raises:
        StoreError: the manifest cannot be read, or the page not be written.
    """
    there = manifest.finished(store)
    if there is None:
        raise StoreError(f"{store.uri(manifest.SUCCESS_KEY)} does not exist: finish the job first")
    success = there[1]
    read = dataset.read_parts(store, success)
    parts = progress(read, len(success.parts), "parts", after_s=QUIET_S)
    slim, rows = _read(parts, success.rows)
    failed = [row for key, _ in success.failures for row in manifest.read_part(store, key)]
    spec = json.loads(store.get(plan.SPEC_KEY))
    samples = at_once(lambda row: _sample(store, row), rows)
    root = store.uri(REPORT_KEY).removesuffix(f"/{REPORT_KEY}")
    page = render_page(root, spec, slim, samples, failed, attempts.recorded(store, ATTEMPTS_READ))
    store.put(REPORT_KEY, page.encode())
    return store.uri(REPORT_KEY)


def render_page(
    root: str,
    spec: Mapping[str, Any],
    rows: pa.Table,
    samples: Sequence[Sample],
    failed: Sequence[Mapping[str, Any]],
    failed_attempts: Sequence[tuple[str, str]],
) -> str:
    """The page as HTML text.

    Args:
        root: of the job, for the commands.
        spec: the content of its job.json.
        rows: of the videos there are, the columns that are summed up.
        samples: the gallery.
        failed: rows that were given up.
        failed_attempts: (item id, reason) of attempts that failed, even if a later one did not.
    """
    environment = pages.environment("render")
    environment.filters.update(plain=plain, seconds=seconds, size=size)
    times = np.sort(rows["created_at"].cast(pa.int64()).to_numpy()) / 1e6
    tries = Counter(rows["attempts"].to_pylist())
    schedule = _schedule(spec)
    return environment.get_template("render.html").render(
        root=root,
        quoted=shlex.quote(root),
        model=spec["model"],
        arguments=spec["arguments"],
        schedule=schedule,
        computed=set(schedule.computed_steps) if schedule else set(),
        rows=rows.num_rows,
        image=not spec["model"]["fps"],
        bytes=int(_known(rows["bytes"]).sum()),
        nfe=np.unique(_known(rows["nfe"])).astype(int).tolist(),
        busy=duration(sum(_known(rows[name]).sum() for name in STAGES)),
        goodput=_goodput(rows),
        throughput=_throughput(times),
        stages=_stages(rows),
        measures=_measures(rows),
        retried=sorted((tried, count) for tried, count in tries.items() if tried > 1),
        failed=len(failed),
        given_up=_reasons((row["item_id"], row["error"]) for row in failed),
        attempts_read=len(failed_attempts),
        attempts_more=len(failed_attempts) == ATTEMPTS_READ,
        reasons=_reasons(failed_attempts),
        samples=samples,
    )


def plain(text: str) -> str:
    """Text of any origin as a page repeats it: one line, printable, not too long."""
    line = "".join(one if one.isprintable() else " " for one in text[: LONGEST_TEXT + 1])
    return line if len(line) <= LONGEST_TEXT else f"{line[:LONGEST_TEXT].rstrip()}…"


def seconds(value: float) -> str:
    """'0.034 s', '1.28 s', '41.2 s', '12 min 5 s'."""
    if value >= 100:
        return duration(value)
    return f"{value:.{3 if value < 1 else 2 if value < 10 else 1}f} s"


def size(count: int) -> str:
    """Bytes as people say them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def _read(parts: Iterable[pa.Table], total: int) -> tuple[pa.Table, list[dict[str, Any]]]:
    """What is summed up of all rows, and the rows of the gallery, evenly spread over the parts."""
    count = min(SAMPLES, total)
    wanted = {number * total // count for number in range(count)}
    slim, rows, seen = [], [], 0
    for part in parts:
        slim.append(dataset.flattened([part.select(_SUMMED)]))
        here = [number - seen for number in wanted if seen <= number < seen + part.num_rows]
        rows += part.take(pa.array(sorted(here), pa.int64())).to_pylist()
        seen += part.num_rows
    return pa.concat_tables(slim, promote_options="default"), rows


def _sample(store: Store, row: Mapping[str, Any]) -> Sample:
    """A gallery's row; without a picture where the video is gone or damaged."""
    try:
        data = dataset.read_checked(store, row["key"], row["sha256"])
        frames = _thumbnail(data) if row["fps"] == 0 else video.preview(data, FRAMES, SIDE)
    except (StoreError, ValueError):
        return Sample(row, None, None)
    frame_ms = round(1000 * row["num_frames"] / row["fps"] / len(frames)) if row["fps"] else 0
    return Sample(
        row, animation(frames, frame_ms, lossless=False), animation(frames[:1], 0, lossless=False)
    )


def _thumbnail(data: bytes) -> NDArray[np.uint8]:
    picture = Image.fromarray(image.decode(data)[0])
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)[None]


def _reasons(failures: Iterable[tuple[str, str | None]]) -> list[Reason]:
    """Equal reasons as one, the most frequent first."""
    items: dict[str, list[str]] = {}
    for item, reason in failures:
        items.setdefault(reason or "unknown", []).append(item)
    ordered = sorted(items.items(), key=lambda one: (-len(one[1]), one[0]))
    return [Reason(text, len(ids), sorted(set(ids))[:NAMED]) for text, ids in ordered[:REASONS]]


def _schedule(spec: Mapping[str, Any]) -> Schedule | None:
    try:
        return None if spec["schedule"] is None else Schedule.from_json(spec["schedule"])
    except ScheduleError:
        return None


def _throughput(times: NDArray[np.float64]) -> dict[str, Any] | None:
    """Videos over time, an hour or a minute; None where there are too few to speak of a rate.

    Args:
        times: (N,) seconds since the epoch at which videos were committed, in order.
    """
    if len(times) < 2 or times[-1] <= times[0]:
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


def _goodput(rows: pa.Table) -> str | None:
    """The share of the gangs' time that went into denoising; None where it was not timed."""
    if not {DENOISE, GANG} <= set(rows.column_names) or not (whole := _known(rows[GANG]).sum()):
        return None
    return f"{_known(rows[DENOISE]).sum() / whole:.0%}"


def _clock(time: float) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=time)
    return f"{moment:%Y-%m-%d %H:%M}"


def _stages(rows: pa.Table) -> list[Stage]:
    """Everything that a video went through: STAGES, and what metrics end in `_s`, in seconds."""
    inner = (name for name in _metrics(rows) if name.endswith("_s") and name != GANG)
    names = [*STAGES, *(name for name in inner if _metric(name) not in STAGES)]
    known = {name: _known(rows[name]) for name in names}
    whole = sum(known[name].sum() for name in STAGES)
    return [
        Stage(
            name=_metric(name).removesuffix("_s"),
            within=name not in STAGES,
            median=float(np.median(values)),
            p90=float(np.quantile(values, 0.9)),
            most=float(values.max()),
            share=float(100 * values.sum() / whole) if whole else 0.0,
        )
        for name, values in known.items()
        if len(values)
    ]


def _measures(rows: pa.Table) -> list[tuple[str, int, float, float, float]]:
    """(name, how many, least, mean, most) of each metric that is no time."""
    known = {name: _known(rows[name]) for name in _metrics(rows) if not name.endswith("_s")}
    return [
        (
            _metric(name),
            len(values),
            float(values.min()),
            float(values.mean()),
            float(values.max()),
        )
        for name, values in known.items()
        if len(values)
    ]


def _metrics(rows: pa.Table) -> Iterator[str]:
    return (name for name in rows.column_names if name.startswith(METRIC))


def _metric(column: str) -> str:
    return column.removeprefix(METRIC)


def _known(column: pa.ChunkedArray) -> NDArray[np.float64]:
    return column.drop_null().to_numpy()
