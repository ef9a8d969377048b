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
from cluster.models.model import Model
from cluster.ranks import denoiser_builder, encoded, encoders_builder
from cluster.ranks.renderer import Renderer, synchronized_now
from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from meancache.schedule import Edge, Schedule
from meancache.statistics import trajectory_statistics
from meancache.trajectory import record_trajectory

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


def take_turns(
    renderer: Renderer,
    arguments: Mapping[str, Any],
    schedules: Mapping[str, Schedule | None],
    repeats: int,
) -> Iterator[tuple[str, Turn]]:
    """One video of each schedule, and again, `repeats` times; yields (name, turn).

    Args:
        renderer: of one rank, with the whole pipeline.
        arguments: of the pipeline's call.
        schedules: by name; None computes every step.
        repeats: turns of each that count.
    """
    for turn in range(repeats + 1):
        for name, schedule in schedules.items():
            measured = _turn(renderer, arguments, schedule)
            if turn:
                yield name, measured


def _turn(renderer: Renderer, arguments: Mapping[str, Any], schedule: Schedule | None) -> Turn:
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


def statistics_seconds(renderer: Renderer, arguments: Mapping[str, Any]) -> float:
    """Seconds that the statistics of one recorded trajectory take."""
    with record_trajectory(renderer.pipeline) as trajectory:
        renderer.latents(PROMPT, SEED, arguments)
    steps = arguments["num_inference_steps"]
    grid = renderer.model.grid(steps, arguments)

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
    return 2 * size**3 / median([_timed(lambda: torch.mm(a, b))[1] for _ in range(5)])


def peak_gib(
    renderer: Renderer, arguments: Mapping[str, Any], schedule: Schedule | None
) -> float | None:
    """GPU memory that denoising needs at most, weights included, in GiB; None on a CPU."""
    if renderer.device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    renderer.denoise(PROMPT, SEED, arguments, schedule)
    return torch.cuda.max_memory_allocated() / 2**30


@dataclass(frozen=True)
class Steady:
    """Videos one after the other through a staged gang.

    Attributes:
        seconds: a video, wall time.
        goodput: share of the gang's time in the denoising loop.
    """

    seconds: float
    goodput: float


def steady_state(
    model: Model,
    arguments: Mapping[str, Any],
    schedule: Schedule | None,
    videos: int,
    compiled: bool = False,
) -> Steady:
    """Delivers videos to a folder as a render job's leader does, all stages at work.

    Args:
        model: what to render with.
        arguments: of the pipeline's call.
        schedule: which steps to compute.
        videos: how many count; as many as fill the stages are delivered before.
        compiled: compile the blocks of the transformer.
    """
    prompts = [Prompt(n, f"{PROMPT} {n}", str(n)) for n in range(1, videos + DEPTH + 1)]
    items = plan_items(prompts, model, dict(arguments), schedule)
    gang = Gang(denoiser_builder(model, compiled=compiled), 1)
    staged = StagedGang(gang, Gang(encoders_builder(model), 1))
    with tempfile.TemporaryDirectory() as folder, staged, ThreadPoolExecutor(DEPTH) as threads:
        delivery = Delivery(Manifest(open_store(folder)), model, schedule)
        ends, rows = [], []
        for row in threads.map(lambda item: delivery(staged, item), items):
            ends.append(time.perf_counter())
            rows.append(row["metrics"])
    counted = rows[DEPTH:]
    return Steady(
        seconds=(ends[-1] - ends[DEPTH - 1]) / videos,
        goodput=sum(row["denoise_s"] for row in counted) / sum(row["gang_s"] for row in counted),
    )


def median(values: Sequence[float]) -> float:
    """Of at least one."""
    return statistics.median(values)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    started = synchronized_now()
    result = call()
    return result, synchronized_now() - started
