"""python -m meancache.tiny.training.ideas: what was tried beyond `fitted`, measured on `tiny`.

Each idea changes how the weights are fitted, on the same computed steps, and is judged by the
paired difference in PSNR on 48 held-out videos, with its standard error. Takes minutes on a core.

    by channel   weights of their own for each latent channel
    by shape     a schedule for each class of prompts, here for each shape in the caption
    second pass  a Gauss-Newton step of all weights at once on the final error, after the first
                 pass has fitted them one after the other

Here the rollout is a plain loop over a batch, so that an idea reads like its algorithm; the method
itself is in `meancache.fitting`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch

from meancache import tiny
from meancache.calibration import Calibration
from meancache.fitting import ORDER, RIDGE
from meancache.methods import candidate_paths
from meancache.quality import Summary, psnr
from meancache.solver import Steps
from meancache.statistics import trajectory_statistics
from meancache.tiny.captions import CALIBRATION, HELD_OUT
from meancache.tiny.training.batch import Batch, decode, make_batch

BUDGETS = (6, 8, 10, 12)
# Enough for fits by shape, which see a third of them.
TRAJECTORIES = 36
PAIRS = 48
CHANNEL_AXIS = 1
STEP = 1e-3  # of a weight, for the derivative of the final latents


Weights = list[list[torch.Tensor]]
"""For each jump, newest velocity first; each a number, or one a channel in a broadcast shape."""

Solve = Callable[[list[torch.Tensor], torch.Tensor], list[torch.Tensor]]
"""From velocities, newest first, and the one that is wanted, to weights."""


def main() -> None:
    """Measures each idea against `fitted`, and prints the differences."""
    torch.set_num_threads(1)
    pipeline = tiny.load()
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        calibration = make_batch(pipeline, CALIBRATION[:TRAJECTORIES], seed=1000)
        held_out = make_batch(pipeline, [*HELD_OUT[: PAIRS // 2]] * 2, seed=5000)
        full = decode(pipeline, held_out.reference[-1])
        print(f"PSNR on {PAIRS} held-out videos, and its difference by idea, dB, ± standard error")
        for budget, steps in paths(calibration).items():
            videos = [decode(pipeline, latents) for latents in ideas(calibration, held_out, steps)]
            scores = np.array(
                [[psnr(one, other) for one, other in zip(v, full, strict=True)] for v in videos]
            )
            line = [f"B = {budget:2}: fitted {Summary.of(scores[0].tolist())}"]
            for name, score in zip(
                ("by channel", "by shape", "second pass"), scores[1:], strict=True
            ):
                gained = Summary.of((score - scores[0]).tolist())
                line.append(f"{name} {gained.mean:+.2f} ± {gained.standard_error:.2f}")
            print(", ".join(line), flush=True)


def paths(calibration: Batch) -> dict[int, Steps]:
    """For each budget the favourite among the candidates of `fitted`."""
    grid = calibration.field.grid
    h = torch.tensor(np.diff(grid.array()), dtype=torch.float32).view(-1, 1, 1)
    velocities = calibration.reference.flatten(2).diff(dim=0) / h
    graph = Calibration(grid).add(
        trajectory_statistics(velocities[:, i], grid, f"{i}", 0)
        for i in range(len(calibration.captions))
    )
    return {budget: found[0] for budget, found in candidate_paths(graph, BUDGETS).items()}


def ideas(calibration: Batch, held_out: Batch, steps: Steps) -> Iterator[torch.Tensor]:
    """Final latents of the held-out videos: as `fitted` has them, then by each idea."""
    everyone = torch.arange(len(calibration.captions))
    plain = fit(calibration, steps, everyone)
    fitted = roll_out(held_out, steps, plain)
    yield fitted
    yield roll_out(held_out, steps, fit(calibration, steps, everyone, by_channel))
    by_shape = fitted.clone()
    for shape in {caption.shape for caption in calibration.captions}:
        mine, theirs = (
            torch.tensor([i for i, caption in enumerate(b.captions) if caption.shape == shape])
            for b in (calibration, held_out)
        )
        own = roll_out(held_out, steps, fit(calibration, steps, mine))
        by_shape[theirs] = own[theirs]
    yield by_shape
    yield roll_out(held_out, steps, second_pass(calibration, steps, plain))


def fit(runs: Batch, steps: Steps, chosen: torch.Tensor, solve: Solve | None = None) -> Weights:
    """Weights fitted on the states that the chosen runs visit, one jump after the other."""
    sigmas = runs.field.grid.sigmas
    latents = runs.reference[0]
    history: list[torch.Tensor] = []
    weights: Weights = []
    for t, s in pairwise((*steps, len(sigmas) - 1)):
        history = [runs.field(latents, sigmas[t]), *history[: ORDER - 1]]
        wanted = (runs.reference[s] - latents) / (sigmas[s] - sigmas[t])
        weights.append((solve or pooled)([v[chosen] for v in history], wanted[chosen]))
        latents = latents + (sigmas[s] - sigmas[t]) * _sum(weights[-1], history)
    return weights


def pooled(history: list[torch.Tensor], wanted: torch.Tensor) -> list[torch.Tensor]:
    """Least squares over all elements, with the ridge towards holding the velocity."""
    A = torch.stack([v.flatten() for v in history]).double()
    y = (wanted - history[0]).flatten().double()
    normal = A @ A.T
    ridge = RIDGE * normal.diagonal().mean() * torch.eye(len(A), dtype=torch.float64)
    solution = torch.linalg.solve(normal + ridge, A @ y)
    solution[0] += 1.0
    return list(solution.float())


def by_channel(history: list[torch.Tensor], wanted: torch.Tensor) -> list[torch.Tensor]:
    """`pooled` for each latent channel on its own."""
    channels = zip(
        *(v.split(1, dim=CHANNEL_AXIS) for v in history),
        wanted.split(1, dim=CHANNEL_AXIS),
        strict=True,
    )
    solved = [torch.stack(pooled(list(one[:-1]), one[-1])) for one in channels]
    shape = [1, -1] + [1] * (wanted.dim() - 2)
    return [weights.view(shape) for weights in torch.stack(solved, dim=1)]


def second_pass(runs: Batch, steps: Steps, weights: Weights) -> Weights:
    """One Gauss-Newton step of all weights on the final error, slightly damped."""
    final = roll_out(runs, steps, weights)
    columns = []
    for jump, row in enumerate(weights):
        for term in range(len(row)):
            moved = [list(other) for other in weights]
            moved[jump][term] = row[term] + STEP
            columns.append(((roll_out(runs, steps, moved) - final) / STEP).flatten().double())
    J = torch.stack(columns)
    normal = J @ J.T
    damped = normal + 1e-2 * normal.diagonal().diag()
    change = iter(torch.linalg.solve(damped, J @ (runs.reference[-1] - final).flatten().double()))
    return [[weight + next(change).float() for weight in row] for row in weights]


def roll_out(runs: Batch, steps: Steps, weights: Weights) -> torch.Tensor:
    """The final latents of all runs under given weights."""
    sigmas = runs.field.grid.sigmas
    latents = runs.reference[0]
    history: list[torch.Tensor] = []
    for (t, s), row in zip(pairwise((*steps, len(sigmas) - 1)), weights, strict=True):
        history = [runs.field(latents, sigmas[t]), *history[: ORDER - 1]]
        latents = latents + (sigmas[s] - sigmas[t]) * _sum(row, history)
    return latents


def _sum(weights: list[torch.Tensor], history: list[torch.Tensor]) -> torch.Tensor:
    terms = [weight * v for weight, v in zip(weights, history, strict=True)]
    return torch.stack(terms).sum(dim=0)


if __name__ == "__main__":
    main()
