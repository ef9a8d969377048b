"""Full against accelerated, on the same noise: what a schedule costs in fidelity and saves in time.

Both runs of a pair happen on one gang, one after the other, and are compared before any video
is encoded as a file.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.fleet.gang import Gang
from cluster.ranks import RenderRequest, render_item
from cluster.work.plan import WorkItem
from meancache.quality import psnr, ssim
from meancache.schedule import Schedule


@dataclass(frozen=True)
class Pair:
    """One prompt rendered with every step and with a schedule.

    Attributes:
        item: what was rendered.
        full: (F, H, W, 3) uint8, every step computed.
        fast: (F, H, W, 3) uint8, the schedule's steps computed.
        psnr: dB of `fast` against `full`.
        ssim: of `fast` against `full`.
        full_s: seconds of the full pipeline call, decoding included.
        fast_s: seconds of the accelerated one.
        nfe: forwards of the accelerated one.
    """

    item: WorkItem
    full: np.ndarray
    fast: np.ndarray
    psnr: float
    ssim: float
    full_s: float
    fast_s: float
    nfe: int


@dataclass(frozen=True)
class Comparison:
    """What the fleet does with each pair; a `fleet.Work`."""

    schedule: Schedule

    def __call__(self, gang: Gang, item: WorkItem) -> Pair:
        """Renders one item twice and measures the difference. Raises GangError."""
        if not gang.pace.known:  # a first call is slower than all that follow
            warm, _ = gang.run_with_retries(render_item, RenderRequest(item, self.schedule))
            gang.pace.observe(1.0, warm.seconds)
        full, _ = gang.run_with_retries(render_item, RenderRequest(item, None))
        fast, _ = gang.run_with_retries(render_item, RenderRequest(item, self.schedule))
        return Pair(
            item=item,
            full=full.frames,
            fast=fast.frames,
            psnr=psnr(fast.frames, full.frames),
            ssim=ssim(fast.frames, full.frames),
            full_s=full.seconds,
            fast_s=fast.seconds,
            nfe=fast.nfe,
        )
