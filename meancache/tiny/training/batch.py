"""Runs of the embedded model as one batch: what its pipeline does a video at a time, many at once.

The embedded model has no guidance in two forwards and no state between steps, so a batch through
its transformer is the same as its pipeline's runs one by one, to rounding (tested). What is fitted
here is `meancache.fitting`'s, in a plain loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from meancache import tiny
from meancache.baselines.field import Field
from meancache.calibration import Calibration
from meancache.fitting import ORDER, RIDGE
from meancache.propagation import Responses
from meancache.quality import psnr
from meancache.schedule import Edge
from meancache.solver import Steps
from meancache.statistics import trajectory_statistics
from meancache.tiny.captions import Caption

# Latents that are decoded at a time.
DECODED = 24


@dataclass(frozen=True)
class Batch:
    """Runs of some captions from their own noise.

    Attributes:
        captions: one a run.
        field: v(latents, sigma) of all of them at once.
        reference: (T + 1, N, ...) latents of the full runs.
    """

    captions: Sequence[Caption]
    field: Field
    reference: torch.Tensor

    def __len__(self) -> int:
        return len(self.captions)

    def first(self, pipeline: Any, count: int, seed: int) -> Batch:
        """The first `count` of runs that `make_batch` has made from this seed."""
        steps, captions = self.field.grid.num_inference_steps, self.captions[:count]
        runs = [partial(run, pipeline, one, seed + i, steps) for i, one in enumerate(captions)]
        return Batch(captions, Field(pipeline, runs), self.reference[:, :count])


def make_batch(pipeline: Any, captions: Sequence[Caption], seed: int, steps: int = 50) -> Batch:
    """Runs of captions, by consecutive seeds, and where they end in full."""
    runs = [partial(run, pipeline, one, seed + i, steps) for i, one in enumerate(captions)]
    field = Field(pipeline, runs)
    return Batch(captions, field, field.reference())


def run(pipeline: Any, caption: Caption, seed: int, steps: int, **overrides: Any) -> torch.Tensor:
    """The final latents of one run of the pipeline itself, (1, ...)."""
    arguments = {**tiny.DEFAULTS, "num_inference_steps": steps, **overrides}
    generator = torch.Generator().manual_seed(seed)
    found = pipeline(caption.text, generator=generator, output_type="latent", **arguments).frames
    return torch.as_tensor(found)


def problems(
    history: Sequence[torch.Tensor], wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The least-squares problem of a jump, one a run: (N, J, J) and (N, J), float64.

    Args:
        history: J velocities of all runs, (N, ...) each, the newest first.
        wanted: (N, ...) the velocity that leads to the target.
    """
    A = torch.stack([v.flatten(1) for v in history], dim=1).double()
    y = (wanted - history[0]).flatten(1).double()
    return A @ A.transpose(1, 2), torch.einsum("njd,nd->nj", A, y)


def solved(normal: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """(..., J) weights of problems that were added up, with the ridge towards holding."""
    terms = normal.shape[-1]
    scale = normal.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    eye = torch.eye(terms, dtype=normal.dtype, device=normal.device)
    weights = torch.linalg.solve(normal + RIDGE * scale * eye, right)
    weights[..., 0] += 1.0
    return weights


def fit(
    batch: Batch, steps: Steps, counts: torch.Tensor | None = None
) -> tuple[list[Edge], torch.Tensor]:
    """Weights fitted on the states that the runs visit, and where all end.

    Args:
        batch: the runs.
        steps: to compute.
        counts: (N,) how much each run counts in the least squares; None for all alike.

    Returns:
        The edges, and (N, ...) final latents.
    """
    sigmas, latents = batch.field.grid.sigmas, batch.reference[0]
    history: list[torch.Tensor] = []
    edges = []
    each = (torch.ones(len(batch)) if counts is None else counts).to(latents.device).double()
    for index, (t, s) in enumerate(pairwise((*steps, len(sigmas) - 1))):
        history = [batch.field(latents, sigmas[t]), *history[: ORDER - 1]]
        wanted = (batch.reference[s] - latents) / (sigmas[s] - sigmas[t])
        normal, right = problems(history, wanted)
        weights = solved(torch.einsum("n,nij->ij", each, normal), each @ right)
        edges.append(_edge(t, s, steps[: index + 1], weights))
        latents = latents + (sigmas[s] - sigmas[t]) * _sum(weights, history)
    return edges, latents


def fits(
    batch: Batch, paths: Sequence[Steps], fitted_on: int | None = None
) -> Iterator[tuple[Steps, torch.Tensor, Responses]]:
    """`fit` for several paths; what they begin with alike is run once.

    Returns:
        The path, where all runs end, and what their velocities did with errors on the way.
    """
    return _descend(batch, (0,), batch.reference[0], [], {}, set(paths), fitted_on)


def _descend(
    batch: Batch,
    prefix: Steps,
    latents: torch.Tensor,
    history: Sequence[torch.Tensor],
    responses: Responses,
    paths: set[Steps],
    fitted_on: int | None,
) -> Iterator[tuple[Steps, torch.Tensor, Responses]]:
    sigmas, t = batch.field.grid.sigmas, prefix[-1]
    history = [batch.field(latents, sigmas[t]), *history[: ORDER - 1]]
    if t > 0:
        responses = {**responses, t: _response(batch, latents, history[0], t)}
    for s in sorted({(*path, len(sigmas) - 1)[len(prefix)] for path in paths}):
        length = sigmas[s] - sigmas[t]
        normal, right = problems(history, (batch.reference[s] - latents) / length)
        weights = solved(normal[:fitted_on].sum(dim=0), right[:fitted_on].sum(dim=0))
        jumped = latents + length * _sum(weights, history)
        if s == len(sigmas) - 1:
            yield prefix, jumped, responses
        else:
            longer = (*prefix, s)
            onward = {path for path in paths if path[: len(longer)] == longer}
            yield from _descend(batch, longer, jumped, history, responses, onward, fitted_on)


def _response(batch: Batch, latents: torch.Tensor, velocity: torch.Tensor, t: int) -> np.ndarray:
    """(N, 2), as `propagation.Responses` has them."""
    sigmas = batch.field.grid.sigmas
    missed = (latents - batch.reference[t]).flatten(1).double()
    own = (batch.reference[t + 1] - batch.reference[t]) / (sigmas[t + 1] - sigmas[t])
    answer = (velocity - own).flatten(1).double()
    square = missed.square().sum(dim=1).clamp(min=1e-30)
    along = (answer * missed).sum(dim=1) / square
    aside = (answer.square().sum(dim=1) / square - along.square()).clamp(min=0).sqrt()
    return torch.stack([along, aside], dim=1).cpu().numpy()


def fit_held_out(batch: Batch, steps: Steps) -> tuple[list[Edge], torch.Tensor]:
    """Weights fitted on all runs, and where each ends by weights fitted without its caption."""
    sigmas = batch.field.grid.sigmas
    same = torch.tensor(
        [[one == other for other in batch.captions] for one in batch.captions],
        device=batch.reference.device,
    ).double()
    latents = left_out = batch.reference[0]
    history: list[torch.Tensor] = []
    own: list[torch.Tensor] = []
    edges = []
    for index, (t, s) in enumerate(pairwise((*steps, len(sigmas) - 1))):
        length = sigmas[s] - sigmas[t]
        history = [batch.field(latents, sigmas[t]), *history[: ORDER - 1]]
        own = [batch.field(left_out, sigmas[t]), *own[: ORDER - 1]]
        normal, right = problems(history, (batch.reference[s] - latents) / length)
        weights = solved(normal.sum(dim=0), right.sum(dim=0))
        without = solved(
            normal.sum(dim=0) - torch.einsum("nm,mij->nij", same, normal),
            right.sum(dim=0) - same @ right,
        )
        edges.append(_edge(t, s, steps[: index + 1], weights))
        latents = latents + length * _sum(weights, history)
        left_out = left_out + length * _sum(without.T, own)
    return edges, left_out


def errors(batch: Batch, ends: torch.Tensor) -> list[float]:
    """Mean squared errors of final latents against the full runs, one a run."""
    missed = (ends - batch.reference[-1]).square().flatten(1).mean(dim=1)
    return [float(error) for error in missed]


def decode(pipeline: Any, latents: torch.Tensor) -> list[np.ndarray]:
    """(F, H, W, 3) uint8 videos."""
    videos = []
    for one in latents.split(DECODED):
        scaled = one / pipeline.vae.config.scaling_factor
        frames = pipeline.vae.decode(scaled, return_dict=False)[0]
        array = pipeline.video_processor.postprocess_video(frames, output_type="np")
        videos += list(np.rint(array * 255).astype(np.uint8))
    return videos


def statistics(runs: Batch) -> Calibration:
    """The statistics of a batch's full runs."""
    grid = runs.field.grid
    lengths = torch.tensor(np.diff(grid.array()), dtype=torch.float32)
    velocities = runs.reference.flatten(2).diff(dim=0) / lengths.to(runs.reference.device).view(
        -1, 1, 1
    )
    return Calibration(grid).add(
        trajectory_statistics(velocities[:, run], grid, f"run-{run:04}", 0)
        for run in range(len(runs))
    )


def psnrs(pipeline: Any, ends: torch.Tensor, full: list[np.ndarray]) -> list[float]:
    """The PSNR of decoded final latents against the videos of the full runs."""
    videos = decode(pipeline, ends)
    return [psnr(video, other) for video, other in zip(videos, full, strict=True)]


def _edge(start: int, stop: int, steps: Steps, weights: torch.Tensor) -> Edge:
    newest_first = list(reversed(steps))[: len(weights)]
    return Edge(start, stop, weights=dict(zip(newest_first, weights.tolist(), strict=True)))


def _sum(weights: torch.Tensor, history: Sequence[torch.Tensor]) -> torch.Tensor:
    """Weights (J,), or (J, N) where each run has its own, times velocities (N, ...)."""
    terms = [
        weight.float().reshape(-1, *[1] * (v.dim() - 1)) * v
        for weight, v in zip(weights, history, strict=True)
    ]
    return torch.stack(terms).sum(dim=0)
