"""A picture to a PNG and back, in memory.

Lossless, so what is measured on the file is what was rendered; no dates or names in it, so the same
pixels give the same bytes with the same libraries.
"""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

_END = b"\0\0\0\0IEND\xaeB`\x82"


def encode(frames: NDArray[np.uint8]) -> bytes:
    """Encode one RGB picture as a PNG.

    frames: uint8, shape (1, H, W, 3): a video of one frame, as renderers return pictures.

    Raises ValueError, in a sentence, for anything else.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        found = getattr(frames, "dtype", type(frames).__name__)
        raise ValueError(f"a picture is {found}, not a numpy array of uint8: convert it to 0..255")
    if frames.ndim != 4 or frames.shape[0] != 1 or frames.shape[3] != 3:
        raise ValueError(f"a picture has shape {frames.shape}: give (1, height, width, 3)")
    data = io.BytesIO()
    Image.fromarray(frames[0], "RGB").save(data, "PNG")
    return data.getvalue()


def decode(data: bytes) -> NDArray[np.uint8]:
    """Return the picture that `encode` was given: uint8, shape (1, H, W, 3), RGB.

    Raises ValueError, in a sentence, if `data` is no PNG or breaks off.
    """
    try:
        if not data.endswith(_END):  # Pillow would show what there is
            raise ValueError("it does not end as one")
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return np.asarray(picture.convert("RGB"))[None]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{len(data)} bytes cannot be decoded as a PNG ({error}): the file is damaged, fetch "
            "or render it again"
        ) from error
