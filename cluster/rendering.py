"""What a rank draws, seen from outside of it: its leader, and who hands out the work.

Light on purpose: only ranks need torch and diffusers, which take seconds to import.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from cluster import image, video
from cluster.model import Model

if TYPE_CHECKING:
    from cluster.renderer import Renderer


@dataclass(frozen=True)
class Rendering:
    """One video or picture as a rank sees it.

    Attributes:
        frames: (F, H, W, 3) uint8 on rank 0, F = 1 for a picture; None on the others.
        nfe: forwards of the transformers; guidance in two forwards counts as two.
        seconds: wall time of the pipeline's call.
        loop_s: wall time of its denoising loop alone: from the transformer's first call to the
            scheduler's last step.
    """

    frames: np.ndarray | None
    nfe: int
    seconds: float
    loop_s: float


def rank_builder(model: Model) -> Callable[[int, int, str], Renderer]:
    """What a gang calls on each of its ranks, as (rank, world_size, init_method)."""
    return partial(_build, model)


def encoded(model: Model, frames: np.ndarray) -> bytes:
    """The file of what was drawn: an mp4, or a PNG of a model of images."""
    return image.encode(frames) if model.kind.is_image else video.encode(frames, model.fps)


def _build(model: Model, rank: int, world_size: int, init_method: str) -> Renderer:
    from cluster.renderer import Renderer

    return Renderer(model, rank, world_size, init_method)
