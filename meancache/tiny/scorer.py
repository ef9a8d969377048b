"""Reads the four facts of a caption from a video's pixels, by plain image analysis.

No learning and no model: what differs from the backdrop is the object; its mean colour, its
outline and its path are compared with what `shapes` draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from meancache.tiny.captions import SHAPES, Caption
from meancache.tiny.shapes import BACKDROP, PALETTE, STEP, distance

FACTS = ("colour", "shape", "direction", "background")

_BORDER = 2  # pixels; no drawn shape covers most of the image's rim
_LEAST_CONTRAST = 0.25  # of an object against the backdrop, Euclidean in RGB; black to white is 1.7
_LEAST_AREA = 60  # pixels; the smallest drawn shape has 420
_COLOUR_TOLERANCE = 0.4  # Euclidean in RGB; the palette's closest two are 0.6 apart
_BACKDROP_TOLERANCE = 0.45
_LEAST_OVERLAP = 0.6  # intersection over union with the outline the caption names
_LEAST_TRAVEL = 8.0  # pixels between first and last frame; drawn shapes travel 24

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """Which facts of a caption a video shows."""

    colour: bool
    shape: bool
    direction: bool
    background: bool

    @property
    def right(self) -> int:
        """How many of the four facts are right."""
        return sum(getattr(self, fact) for fact in FACTS)


def score(frames: npt.NDArray[np.uint8] | npt.NDArray[np.floating], caption: Caption) -> Score:
    """Judges a video (F, H, W, 3), uint8 or float in [0, 1], against a caption.

    A video without a visible object has no colour, shape or direction. Raises ValueError where
    the array is not such a video.
    """
    video = _as_float(frames)
    backdrop = _backdrop(video)
    contrast = np.linalg.norm(video - backdrop, axis=-1)
    strongest = float(np.percentile(contrast, 95))
    masks = contrast > strongest / 2
    background = _nearest(backdrop, BACKDROP, _BACKDROP_TOLERANCE) == caption.background
    if strongest < _LEAST_CONTRAST or masks.sum(axis=(1, 2)).min() < _LEAST_AREA:
        return Score(colour=False, shape=False, direction=False, background=background)
    inside = video[contrast > 0.8 * strongest]
    return Score(
        colour=_nearest(np.median(inside, axis=0), PALETTE, _COLOUR_TOLERANCE) == caption.colour,
        shape=_shape(masks) == caption.shape,
        direction=_direction(masks) == caption.direction,
        background=background,
    )


def _as_float(frames: npt.NDArray[np.generic]) -> Array:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.shape[0] < 2:
        raise ValueError(
            f"frames of shape {frames.shape} are not a video; give (frames, height, width, 3), "
            "two frames at least"
        )
    if frames.dtype == np.uint8:
        return frames.astype(np.float64) / 255
    if not np.issubdtype(frames.dtype, np.floating):
        raise ValueError(f"frames of {frames.dtype} are neither uint8 nor float in [0, 1]; convert")
    return frames.astype(np.float64)


def _backdrop(video: Array) -> Array:
    """The median colour of the rim of all frames."""
    rim = np.ones(video.shape[1:3], dtype=bool)
    rim[_BORDER:-_BORDER, _BORDER:-_BORDER] = False
    colour: Array = np.median(video[:, rim].reshape(-1, 3), axis=0)
    return colour


def _nearest(
    colour: Array, named: dict[str, tuple[float, float, float]], tolerance: float
) -> str | None:
    """The name of the nearest colour, or None where none is within the tolerance."""
    distances = {name: float(np.linalg.norm(colour - value)) for name, value in named.items()}
    name = min(distances, key=distances.__getitem__)
    return name if distances[name] <= tolerance else None


def _centroids(masks: npt.NDArray[np.bool_]) -> Array:
    """(F, 2): x and y of each frame's object, in pixels."""
    return np.array([[index.mean() for index in np.nonzero(mask)[::-1]] for mask in masks])


def _shape(masks: npt.NDArray[np.bool_]) -> str | None:
    """The outline that overlaps the objects best when laid on their centroids, or None."""
    height, width = masks.shape[1:]
    overlaps = {}
    for shape in SHAPES:
        template = _outline(shape, height, width)
        (middle_x, middle_y), shares = _centroids(template[None])[0], []
        for mask, (x, y) in zip(masks, _centroids(masks), strict=True):
            moved = _moved(template, round(y - middle_y), round(x - middle_x))
            shares.append((moved & mask).sum() / (moved | mask).sum())
        overlaps[shape] = float(np.mean(shares))
    best = max(overlaps, key=overlaps.__getitem__)
    return best if overlaps[best] >= _LEAST_OVERLAP else None


def _outline(shape: str, height: int, width: int) -> npt.NDArray[np.bool_]:
    """The pixels a shape at the image's centre covers by half at least."""
    x = np.arange(width) + 0.5 - width / 2
    y = np.arange(height) + 0.5 - height / 2
    inside: npt.NDArray[np.bool_] = distance(shape, x[None, :], y[:, None], np) <= 0
    return inside


def _moved(mask: npt.NDArray[np.bool_], down: int, right: int) -> npt.NDArray[np.bool_]:
    """The mask shifted by whole pixels; what leaves the image is lost."""
    moved = np.zeros_like(mask)
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    rows, columns = rows + down, columns + right
    kept = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    moved[rows[kept], columns[kept]] = True
    return moved


def _direction(masks: npt.NDArray[np.bool_]) -> str | None:
    """Where the object's centroid goes from the first to the last frame, by a fitted line."""
    time = np.arange(len(masks))
    slope = np.polyfit(time, _centroids(masks), deg=1)[0]
    travel = slope * (len(masks) - 1)
    along = {name: float(np.dot(travel, step)) for name, step in STEP.items()}
    name = max(along, key=along.__getitem__)
    return name if along[name] >= _LEAST_TRAVEL else None
