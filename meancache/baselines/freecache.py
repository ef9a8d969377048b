"""FreeCache, written from the documentation of ChituDiffusion.

From Gram matrices of velocities on calibration runs: a skipped step takes the least-squares
prediction from the last two computed velocities, and steps are deleted one by one from the full
run, each time the one whose deletion costs least, until the budget is left. The cost of a jump is
what it displaces, times how far a displacement there is carried on to the end (`propagation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from meancache.baselines.calibration_data import CalibrationData, Velocity
from meancache.baselines.forecasts import forecast_edges
from meancache.baselines.l2p import reconstruction
from meancache.costs import least_squares_costs
from meancache.schedule import Schedule

SOURCE = "written from the documentation of ChituDiffusion's FreeCache"
# Noise levels between two whose propagation is measured; between them it is interpolated.
EVERY = 5


def freecache_schedules(data: CalibrationData) -> list[Schedule]:
    """FreeCache at each budget, with or without propagation, as suits the runs best."""
    if not data.budgets:
        return []
    gram, sigmas = data.statistics.gram(), data.grid.array()
    costs = least_squares_costs(gram, sigmas, terms=2) ** 2
    with torch.no_grad():
        factors = propagation(data.field, data.reference, data.grid.sigmas)
    last_two = reconstruction(gram)
    return [
        data.best(
            data.schedule(
                "freecache",
                budget,
                forecast_edges(
                    sigmas,
                    greedy_steps(costs * weights, budget),
                    lambda known, step: np.pad(last_two(known[-2:], step), (len(known[:-2]), 0)),
                ),
                SOURCE,
                setting,
            )
            for setting, weights in (
                ("weighted by propagation", factors**2),
                ("not weighted by propagation", np.ones_like(factors)),
            )
        )
        for budget in data.budgets
    ]


def greedy_steps(costs: np.ndarray, budget: int) -> tuple[int, ...]:
    """The steps that are left when the cheapest is deleted until `budget` are left.

    Args:
        costs: (T, T, T + 1): costs[p, t, s] of the jump t -> s after p; costs[0, 0, s] of the
            first. Deleting a step changes up to three jumps; the sum over all counts.
        budget: 1..T.
    """
    steps = tuple(range(len(costs)))
    while len(steps) > budget:
        shorter = [steps[:i] + steps[i + 1 :] for i in range(1, len(steps))]
        steps = min(shorter, key=partial(_total, costs))
    return steps


def _total(costs: np.ndarray, steps: Sequence[int]) -> float:
    befores, afters = (steps[0], *steps[:-1]), (*steps[1:], len(costs))
    return float(costs[befores, steps, afters].sum())


def propagation(field: Velocity, reference: torch.Tensor, sigmas: Sequence[float]) -> np.ndarray:
    """How many times larger a displacement at each noise level has become at the end.

    The displacement that is followed is the one that holding the velocity for one step makes, from
    the full runs, at every fifth level.

    Args:
        field: v(latents, sigma) of N runs.
        reference: (T + 1, N, ...) the full runs.
        sigmas: T + 1 noise levels.

    Returns:
        (T + 1,) float64, 1 at the end, and at levels where the velocity does not change at all:
        nothing is displaced there.
    """
    total = len(sigmas) - 1
    levels = sorted({*range(1, total, EVERY), total - 1} - {0})
    factors = []
    for level in levels:
        velocity = field(reference[level], sigmas[level])
        before = (reference[level] - reference[level - 1]) / (sigmas[level] - sigmas[level - 1])
        push = (sigmas[level + 1] - sigmas[level]) * (before - velocity)
        latents = reference[level] + push
        for step in range(level, total):
            latents = latents + (sigmas[step + 1] - sigmas[step]) * field(latents, sigmas[step])
        moved, size = float((latents - reference[-1]).norm()), float(push.norm())
        rounding = 8 * torch.finfo(push.dtype).eps * float(reference[level].norm())
        factors.append(moved / size if size > rounding else 1.0)
    return np.interp(range(total + 1), [*levels, total], [*factors, 1.0])
