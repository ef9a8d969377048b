"""Draws the training videos: one coloured shape that moves over a plain background.

Knows pixels and captions; knows nothing of latents or of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from meancache.tiny.captions import Caption

if TYPE_CHECKING:  # who scores videos needs the shapes, and not torch
    import torch

SIZE = 64  # pixels, height and width
FRAMES = 9
SPEED = 3.0  # pixels a frame
# The sizes make any two shapes differ where latents can tell: with one common radius, circles and
# squares differ by so little of the latents' spread that a small model never learns the words.
RADIUS = 12.5
SQUARE_HALF_SIDE = 13.5
TRIANGLE_HALF_WIDTH = 15.6
TRIANGLE_HALF_HEIGHT = 13.5
JITTER = 5.0  # the path's centre lies within this many pixels of the image's centre, each axis

PALETTE = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.75, 0.18),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "cyan": (0.10, 0.85, 0.90),
    "magenta": (0.88, 0.15, 0.85),
}
BACKDROP = {"dark": (0.06, 0.06, 0.08), "light": (0.93, 0.93, 0.92)}
STEP = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}


def coverage(shape: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """How much of each pixel a shape covers, in [0, 1], with edges one pixel soft.

    x and y are the pixel's offsets from the shape's centre, in pixels, any broadcastable shapes.
    """
    import torch

    covered: torch.Tensor = (0.5 - distance(shape, x, y, torch)).clamp(0.0, 1.0)
    return covered


def distance(shape: str, x: Any, y: Any, library: Any) -> Any:
    """How far pixels are from a shape's outline, in pixels, negative within it.

    x and y are as in `coverage`, arrays of `library`, which is torch or numpy.
    """
    if shape == "circle":
        return library.sqrt(x * x + y * y) - RADIUS
    if shape == "square":
        return library.maximum(abs(x), abs(y)) - SQUARE_HALF_SIDE
    height, width = 2 * TRIANGLE_HALF_HEIGHT, TRIANGLE_HALF_WIDTH
    slanted = height * abs(x) - width * (y + TRIANGLE_HALF_HEIGHT)
    slanted = slanted / math.hypot(height, width)
    return library.maximum(slanted, y - TRIANGLE_HALF_HEIGHT)


def render(captions: Sequence[Caption], centres: torch.Tensor) -> torch.Tensor:
    """Videos (B, 3, F, H, W), float32 in [0, 1].

    centres: (B, 2), x and y in pixels of the middle of each path, relative to the image's centre.
    """
    import torch

    time = (torch.arange(FRAMES) - (FRAMES - 1) / 2) * SPEED
    pixel = torch.arange(SIZE) + 0.5 - SIZE / 2
    videos = torch.empty(len(captions), 3, FRAMES, SIZE, SIZE)
    for video, caption, centre in zip(videos, captions, centres, strict=True):
        step_x, step_y = STEP[caption.direction]
        x = pixel[None, None, :] - (centre[0] + step_x * time)[:, None, None]
        y = pixel[None, :, None] - (centre[1] + step_y * time)[:, None, None]
        alpha = coverage(caption.shape, x, y)
        front = torch.tensor(PALETTE[caption.colour])[:, None, None, None]
        back = torch.tensor(BACKDROP[caption.background])[:, None, None, None]
        video.copy_(back + alpha * (front - back))
    return videos


def random_centres(count: int, generator: torch.Generator) -> torch.Tensor:
    """Path centres (count, 2) for `render`, uniform within JITTER pixels."""
    import torch

    return (torch.rand(count, 2, generator=generator) * 2 - 1) * JITTER
