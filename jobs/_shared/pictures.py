"""Frames as pictures that a page holds within itself."""

from __future__ import annotations

import base64
import io

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Pixels between the frames of a film strip.
BORDER = 2
# The difference that is shown brightest, as a share of the range; small errors need it.
MOST_DIFFERENCE = 1 / 32


def film_strip(frames: NDArray[np.uint8]) -> str:
    """All frames, (F, H, W, 3), in a row with borders between them, as a data URI."""
    count, height, width, channels = frames.shape
    opaque = np.full((count, height, width, 1), 255, np.uint8)
    border = np.zeros((height, BORDER, channels + 1), np.uint8)  # the page shows through
    parts = [border]
    for frame in np.concatenate([frames, opaque], axis=-1):
        parts += [frame, border]
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(parts[1:-1], axis=1)).save(sink, "PNG", optimize=True)
    return _data_uri("image/png", sink.getvalue())


def heat_map(frames: NDArray[np.uint8], reference: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """How far pixels are from a reference, both (F, H, W, 3): black is identical, bright is far.

    The mean over channels, on a scale that ends at `MOST_DIFFERENCE` of the range.
    """
    error = np.abs(frames.astype(np.float32) - reference).mean(axis=-1) / (255 * MOST_DIFFERENCE)
    return matplotlib.colormaps["inferno"](error.clip(0.0, 1.0), bytes=True)[..., :3]


def animation(frames: NDArray[np.uint8], frame_ms: int, lossless: bool = True) -> str:
    """Frames, (F, H, W, 3), as a small looping picture, as a data URI; one frame stands still."""
    images = [Image.fromarray(frame) for frame in frames]
    sink = io.BytesIO()
    images[0].save(
        sink,
        "WEBP",
        save_all=True,
        append_images=images[1:],
        duration=frame_ms,
        loop=0,
        lossless=lossless,
    )
    return _data_uri("image/webp", sink.getvalue())


def _data_uri(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"
