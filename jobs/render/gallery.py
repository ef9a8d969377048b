"""The videos that a page shows: those that an audit found worst, and others evenly spread."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image

from cluster.media import image, video
from cluster.media.picture import PictureError, opened
from cluster.results.datasets import dataset
from cluster.results.parts import METRIC, first_of_each_item, without_extra
from cluster.store import Store, StoreError
from cluster.work import pictures
from jobs._shared.pictures import animation

SAMPLES = 24
# A sampled video is shown in so many pixels of its longer edge, and so many frames.
SIDE, FRAMES = 256, 12
# How many of the worst are shown first, where an audit measured some.
WORST = 8
PSNR = "metrics.psnr"
_SUMMED = ("render_s", "encode_s", "upload_s", "created_at", "attempts", "nfe", "bytes")


@dataclass(frozen=True)
class Sample:
    """A row of the gallery.

    Attributes:
        row: of the manifest.
        moving: the video as a small animation, a data URI; None where it could not be read.
        still: its first frame.
        image: what it was drawn from, small; None where that is nothing, or could not be read.
    """

    row: Mapping[str, Any]
    moving: str | None
    still: str | None
    image: str | None = None


@dataclass(frozen=True)
class Chosen:
    """What is read of all parts.

    Attributes:
        slim: the columns that are summed up, of all rows.
        worst: the rows of the lowest audited PSNR, the worst first.
        spread: others, evenly spread.
        names: item id -> (prompt_id, prompt) of the rows that were asked for.
    """

    slim: pa.Table
    worst: list[dict[str, Any]]
    spread: list[dict[str, Any]]
    names: dict[str, tuple[str, str]]


def choose(
    parts: Iterable[pa.Table], total: int, asked: Collection[str], across: bool = False
) -> Chosen:
    """Reads the parts of a manifest once.

    Args:
        parts: of the manifest.
        total: rows in them.
        asked: item ids whose names are wanted.
        across: whether rows may share a video with those of another part, as appended ones do.
    """
    count = min(SAMPLES, total)
    wanted = {number * total // count for number in range(count)}
    slim: list[pa.Table] = []
    rows: list[dict[str, Any]] = []
    worst: list[tuple[float, dict[str, Any]]] = []
    names: dict[str, tuple[str, str]] = {}
    items: set[str] | None = set() if across else None
    seen = 0
    ids = pa.array(sorted(asked), pa.string())
    for whole in parts:
        part = without_extra(whole)
        videos = first_of_each_item(part, items)
        metrics = [name for name in videos.column_names if name.startswith(METRIC)]
        slim.append(videos.select([*_SUMMED, *metrics]))
        here = [number - seen for number in wanted if seen <= number < seen + part.num_rows]
        rows += part.take(pa.array(sorted(here), pa.int64())).to_pylist()
        worst = heapq.nsmallest(WORST, [*worst, *_audited(videos)], key=lambda row: row[0])
        named = part.filter(pc.is_in(part["item_id"], ids))
        for row in named.select(["item_id", "prompt_id", "prompt"]).to_pylist():
            names[row["item_id"]] = (row["prompt_id"], row["prompt"])
        seen += part.num_rows
    shown = {row["item_id"] for _, row in worst}
    spread = [row for row in rows if row["item_id"] not in shown]
    return Chosen(
        dataset.flattened(slim), [row for _, row in worst], spread[: SAMPLES - len(worst)], names
    )


def _audited(part: pa.Table) -> list[tuple[float, dict[str, Any]]]:
    """(PSNR, row) of the worst rows of a part that were rendered in full too."""
    if PSNR not in part.column_names:
        return []
    scores = part[PSNR].to_pylist()
    known = [(score, place) for place, score in enumerate(scores) if score is not None]
    least = heapq.nsmallest(WORST, known)
    return [(score, part.slice(place, 1).to_pylist()[0]) for score, place in least]


def sample(store: Store, row: Mapping[str, Any]) -> Sample:
    """A gallery's row; without a picture where the video is gone or damaged."""
    given = _given(store, row)
    try:
        data = dataset.read_checked(store, row["key"], row["sha256"])
        frames = _thumbnail(data) if row["fps"] == 0 else video.preview(data, FRAMES, SIDE)
    except (StoreError, ValueError):
        return Sample(row, None, None, given)
    frame_ms = round(1000 * row["num_frames"] / row["fps"] / len(frames)) if row["fps"] else 0
    moving, still = (
        animation(some, each_ms, lossless=False)
        for some, each_ms in ((frames, frame_ms), (frames[:1], 0))
    )
    return Sample(row, moving, still, given)


def _given(store: Store, row: Mapping[str, Any]) -> str | None:
    """The image that a row brought, as a data URI."""
    brought = pictures.of_row(row)
    if brought is None:
        return None
    try:
        whole = opened(pictures.fetched(store, brought))
    except (StoreError, PictureError):
        return None
    whole.thumbnail((SIDE, SIDE))
    return animation(np.asarray(whole)[None], 0, lossless=False)


def _thumbnail(data: bytes) -> NDArray[np.uint8]:
    picture = Image.fromarray(image.decode(data)[0])
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)[None]
