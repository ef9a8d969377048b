"""What the fleet does with each pair: the full run, every method's video, and what they are worth.

A pair is a prompt and a seed. One gang renders its full run and then every method's video from the
same noise, and measures them before any video encoder; a pair's rows are committed as one small
file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.fleet.gang import TASK_DEADLINE_S, Gang, GangTaskError
from cluster.fleet.giving_up import CountedWork
from cluster.results.attempts import Attempts
from cluster.store import AlreadyExists
from cluster.work.pictures import fetched
from cluster.work.plan import WorkItem
from jobs.evaluate.captions import caption_score
from jobs.evaluate.methods import (
    CalibrationRequest,
    Method,
    MethodVideo,
    VideoRequest,
    calibrate_baselines,
    fine_request,
    full_run,
    render_video,
)
from jobs.evaluate.table import FULL, schema_of, scoreboard, to_parquet
from meancache.baselines import Baseline
from meancache.quality import LpipsAbsentError, flip, lpips_metric, psnr, ssim
from meancache.schedule import Schedule

PAIRS = "evaluation/pairs/"
ATTEMPTS = "evaluation/attempts/"
# A baseline's compute varies little between pairs, and counting it takes a run of its own.
COUNTED_PAIRS = 2
# What it may take, in deadlines of a full video: runs of all of them, many times over.
CALIBRATION_VIDEOS = 100


@dataclass(frozen=True)
class Evaluation(CountedWork):
    """What the fleet does with each pair; its result is what went wrong, '' if nothing did.

    Attributes:
        counted: the failed attempts; their store is the root.
        methods: what is compared with the full run.
        fine: the schedule of the fine solution, or None where there is none to compare with.
        captioned: whether the prompts are captions whose facts can be counted.
    """

    counted: Attempts
    methods: Sequence[Method]
    fine: Schedule | None
    captioned: bool = False

    @property
    def counting(self) -> bool:
        """Whether a share of compute has to be counted: that of schedules is known."""
        return any(one.schedule is None for one in self.methods)

    @property
    def attempts(self) -> Attempts:
        """Where failed attempts are counted."""
        return self.counted

    def committed(self, item: WorkItem) -> str | None:
        """'' where the pair's rows are there."""
        return "" if self.counted.store.exists(pair_key(item)) else None

    def attempt(self, gang: Gang, item: WorkItem, number: int) -> str:
        """Renders, compares and commits one pair."""
        if item.image is not None:
            item = replace(item, image=fetched(self.counted.store, item.image))
        rows = scoreboard(self._rows(gang, item), schema_of(self.captioned))
        with suppress(AlreadyExists):  # another driver was first; its rows differ in seconds alone
            self.counted.store.put_new(pair_key(item), to_parquet(rows))
        return ""

    def give_up(self, gang: Gang, item: WorkItem, reasons: Sequence[str]) -> str:
        """The pair and the last reason."""
        return f"{item.prompt_id}, seed {item.seed}: {reasons[-1]}"

    def _rows(self, gang: Gang, item: WorkItem) -> list[dict[str, Any]]:
        steps = item.arguments["num_inference_steps"]
        counted = self.counting and item.index < COUNTED_PAIRS
        full_method = full_run(steps)
        store = self.counted.store
        full = _video(gang, VideoRequest(item, full_method, counted, store))
        fine = None
        if self.fine is not None:
            fine = _video(gang, fine_request(item, self.fine, store)).frames
        rows = [self._row(item, full_method, full, full, fine)]
        for one in self.methods:
            request = VideoRequest(item, one, counted and one.schedule is None, store)
            rows.append(self._row(item, one, _video(gang, request), full, fine))
        return rows

    def _row(
        self,
        item: WorkItem,
        method: Method,
        video: MethodVideo,
        full: MethodVideo,
        fine: np.ndarray | None,
    ) -> dict[str, Any]:
        """One method's row; the full run is not compared with itself."""
        frames = video.frames
        reference = None if video is full else full.frames
        return {
            "method": method.method,
            "setting": method.setting,
            "source": method.source,
            "prompt_id": item.prompt_id,
            "prompt": item.prompt,
            "schedule_id": None if method.schedule is None else method.schedule.id,
            "budget": method.budget if method.budget is not None else video.steps,
            "nfe": video.rendering.nfe,
            "seed": item.seed,
            "share": _share(method, video, full),
            "seconds": video.rendering.loop_s,
            "psnr": None if reference is None else psnr(frames, reference),
            "ssim": None if reference is None else ssim(frames, reference),
            "lpips": None if reference is None else _lpips(frames, reference),
            "flip": None if reference is None else flip(frames, reference),
            "psnr_fine": None if fine is None else psnr(frames, fine),
            "caption": caption_score(frames, item.prompt) if self.captioned else None,
        }


def pair_key(item: WorkItem) -> str:
    """Where a pair's rows lie."""
    return f"{PAIRS}{item.id}.parquet"


def _video(gang: Gang, request: VideoRequest) -> MethodVideo:
    try:
        video: MethodVideo = gang.run(render_video, request)
    except GangTaskError as error:
        raise GangTaskError(f"{request.method.name}: {error}") from error
    return video


def _share(one: Method, video: MethodVideo, full: MethodVideo) -> float | None:
    """The method's share of the full run's transformer FLOPs, where it is known."""
    if one.method == FULL:
        return 1.0
    if one.schedule is not None:  # every forward of a transformer costs the same
        return video.rendering.nfe / full.rendering.nfe
    return video.flops / full.flops if video.flops is not None and full.flops else None


def _lpips(video: np.ndarray, full: np.ndarray) -> float | None:
    try:
        return lpips_metric()(video, full)
    except LpipsAbsentError:
        return None


@dataclass(frozen=True)
class BaselineCalibration:
    """What the fleet does once, where baselines ask for calibration runs; a `fleet.Work`."""

    request: CalibrationRequest

    def __call__(self, gang: Gang, item: None) -> list[Baseline | Schedule]:
        """The calibrated baselines. Raises GangError."""
        deadline_s = CALIBRATION_VIDEOS * TASK_DEADLINE_S
        found, _ = gang.run_with_retries(calibrate_baselines, self.request, deadline_s)
        return list(found)
