"""Measures a renderer on this machine: what a step, a skipped step and each stage cost.

Runs with and without a schedule take turns, so that whatever else the machine does falls on both;
medians are over these turns. The first of each kind warms up and is not counted. No Ray in here.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from cluster.fleet.delivery import Delivery
from cluster.fleet.gang import Gang
from cluster.fleet.staged_gang import DEPTH, StagedGang
from cluster.models.compiling import ALWAYS, NEVER
from cluster.models.cost_model import GIB
from cluster.models.model import Model
from cluster.ranks import denoiser_builder, encoded, encoders_builder
from cluster.ranks.renderer import Renderer
from cluster.ranks.watching import synchronized_now
from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from meancache.schedule import Edge, Schedule
from meancache.statistics import trajectory_statistics
from meancache.trajectory import Trajectory

PROMPT = "a red circle moving left on a dark background"
SEED = 0


@dataclass(frozen=True)
class Turn:
    """One video, in seconds.

    Attributes:
        loop: of the denoising loop.
        steps: of each step but the first, in their order.
        decode: of its latents.
        file: of the mp4.
        text: of the prompt's embeddings.
    """

    loop: float
    steps: Sequence[float]
    decode: float
    file: float
    text: float

    @property
    def video(self) -> float:
        """Prompt to mp4, one stage after the other."""
        return self.text + self.loop + self.decode + self.file


def even_schedule(sigmas: Sequence[float], budget: int) -> Schedule:
    """Evenly spaced computed steps, each average velocity of three of them: as dear as any."""
    steps = len(sigmas) - 1
    starts = [round(k * steps / budget) for k in range(budget)]
    edges = []
    for k, (start, stop) in enumerate(zip(starts, [*starts[1:], steps], strict=True)):
        history = starts[max(0, k - 2) : k + 1]
        edges.append(Edge(start, stop, weights={step: 1 / len(history) for step in history}))
    return Schedule.from_edges(sigmas, edges)


def turn(renderer: Renderer, arguments: Mapping[str, Any], schedule: Schedule | None) -> Turn:
    """Renders one video, each part after the one before; the device is waited for at every step."""
    # A prompt of its own every time: embeddings of repeated ones are remembered.
    prompt = f"{PROMPT} {os.urandom(4).hex()}"
    with _ends_of_steps(renderer.pipeline.scheduler) as ends:
        texts, text_s = _timed(lambda: renderer.encode_prompt(prompt, arguments))
        denoised = renderer.denoise(prompt, SEED, arguments, schedule, texts)
    latents = denoised.latents
    assert latents is not None  # of rank 0
    frames, decode_s = _timed(lambda: renderer.decode(latents, arguments))
    _, file_s = _timed(lambda: encoded(renderer.model, frames))
    steps = [after - before for before, after in pairwise(ends)]
    return Turn(denoised.loop_s, steps, decode_s, file_s, text_s)


@contextmanager
def _ends_of_steps(scheduler: Any) -> Iterator[list[float]]:
    """When each of the scheduler's steps was done, the device waited for."""
    ends: list[float] = []
    step = scheduler.step

    def timed(*given: Any, **named: Any) -> Any:
        result = step(*given, **named)
        ends.append(synchronized_now())
        return result

    scheduler.step = timed
    try:
        yield ends
    finally:
        scheduler.step = step


def statistics_seconds(model: Model, trajectory: Trajectory, arguments: Mapping[str, Any]) -> float:
    """Seconds that the statistics of one recorded trajectory take."""
    steps = arguments["num_inference_steps"]
    grid = model.grid(steps, arguments)

    def measure() -> object:
        return trajectory_statistics(trajectory.velocities(steps), grid, "benchmark", SEED)

    measure()
    _, seconds = _timed(measure)
    return seconds


def matmul_rate(renderer: Renderer, size: int) -> float:
    """FLOP/s of a square matrix product in the model's dtype: the limit of what is all matmul."""
    dtype = getattr(torch, renderer.model.dtype)
    a, b = torch.randn(2, size, size, device=renderer.device, dtype=dtype).unbind()
    torch.mm(a, b)
    return 2 * size**3 / statistics.median([_timed(lambda: torch.mm(a, b))[1] for _ in range(5)])


def steady_state(
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Schedule | None,
    videos: int,
    compiled: bool = False,
) -> dict[str, Any]:
    """Delivers videos to a folder as a render job's leader does, all stages at work.

    Args:
        model: what to render with.
        arguments: of the pipeline's call.
        schedule: which steps to compute.
        videos: how many count; as many as fill the stages are delivered before.
        compiled: compile the blocks of the transformer.

    Returns:
        seconds a video (wall time), goodput, ideal seconds a video, means of what the rows say of
        each stage, start-up, and on GPUs the peak of each process and what all hold, in GiB.
    """
    prompts = [Prompt(n, f"{PROMPT} {n}", str(n)) for n in range(1, videos + DEPTH + 1)]
    items = plan_items(prompts, model, dict(arguments), schedule)
    build = denoiser_builder(model, compiling=ALWAYS if compiled else NEVER)
    staged = StagedGang(Gang(build, 1), Gang(encoders_builder(model), 1))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, staged, ThreadPoolExecutor(DEPTH) as threads:
        started_s = time.perf_counter() - began
        delivery = Delivery(Manifest(open_store(folder)), model, schedule)
        ends, rows = [], []
        for row in threads.map(lambda item: delivery(staged, item), items):
            ends.append(time.perf_counter())
            rows.append(row)
            print(f"video {len(ends)} after {ends[-1] - began:.1f} s", flush=True)
        peaks = {
            "rank_gib": staged.gang.run(peak_gib, None),
            "encoders_gib": staged.encoders.run(peak_gib, None),
            "all_processes_gib": used_gib(),
        }
    counted = [{**row["metrics"], "encode_s": row["encode_s"]} for row in rows[DEPTH:]]
    means = {name: statistics.fmean(row[name] for row in counted) for name in counted[0]}
    return {
        "seconds": (ends[-1] - ends[DEPTH - 1]) / videos,
        "goodput": means["ideal_s"] / means["gang_s"],
        "start_s": started_s,
        "first_video_s": ends[0] - began,
        "ends_s": [end - began for end in ends],
        "attention": rows[0]["attention"],
        "means": means,
        **{name: gib for name, gib in peaks.items() if gib is not None},
    }


def peak_gib(rank: Renderer, payload: None) -> float | None:
    """A gang's task: the most that this process has allocated; None on a CPU."""
    return torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None


def used_gib() -> float | None:
    """What all processes hold of this GPU now; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    free, whole = torch.cuda.mem_get_info()
    return (whole - free) / GIB


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = synchronized_now()
    result = call()
    return result, synchronized_now() - started
