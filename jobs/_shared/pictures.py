"""Frames as pictures that a page holds within itself."""

from __future__ import annotations

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def film_strip(frames: NDArray[np.uint8]) -> str:
    """All frames, (F, H, W, 3), in a row, as a data URI."""
    sink = io.BytesIO()
    Image.fromarray(np.concatenate(list(frames), axis=1)).save(sink, "PNG", optimize=True)
    return _data_uri("image/png", sink.getvalue())


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
