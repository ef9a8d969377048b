"""A renderer that renders nothing, behind the same gang interface: what a job costs without GPUs.

Everything around the model stays real: ranks, pipes, mp4, store, receipts. For `jobs.benchmark
scale`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from cluster.ranks import Denoised
from meancache import Schedule

SIDE = 16  # pixels; the smallest that H.264 takes


class NullAdapters:
    """No item of the benchmark names one."""

    def use(self, wanted: Sequence[Any], read: Callable[[str], bytes]) -> bool:
        """There were no others before."""
        return False


class NullRenderer:
    """Stands where a `Renderer` stands; its videos are one small frame that tells seeds apart."""

    def __init__(self, rank: int, world_size: int, init_method: str) -> None:
        self.rank = rank
        self.world_size = world_size
        self.adapters = NullAdapters()

    def encode_prompt(self, prompt: str, arguments: Mapping[str, Any]) -> bytes:
        """No embeddings."""
        return b""

    def denoise(
        self,
        prompt: str,
        seed: int,
        arguments: Mapping[str, Any],
        schedule: Schedule | None = None,
        texts: bytes | None = None,
    ) -> Denoised:
        """The seed, at once."""
        return Denoised(bytes([seed % 256]), nfe=0, loop_s=0.0, gang_s=0.0)

    def decode(self, latents: bytes, arguments: Mapping[str, Any]) -> np.ndarray:
        """A frame of 16x16 pixels of one value."""
        return np.full((1, SIDE, SIDE, 3), latents[0], np.uint8)
