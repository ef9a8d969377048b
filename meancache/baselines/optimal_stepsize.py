"""Optimal Stepsize, written from the paper (arXiv:2503.21774).

The Euler solution with few steps that follows a teacher's, by dynamic programming: the best
state that i steps can bring to noise level j is one Euler step from the best state that i - 1
steps can bring to some level before. Amplitude calibration, the paper's second part, is left out:
it changes the model's input, which a schedule does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from meancache.baselines.calibration_data import CalibrationData, Velocity
from meancache.schedule import Edge, Schedule

SOURCE = "written from arXiv:2503.21774"


def optimal_steps(
    field: Velocity, reference: torch.Tensor, sigmas: Sequence[float], most: int
) -> dict[int, tuple[int, ...]]:
    """The steps that few-step Euler should compute, for every number of steps at once.

    Args:
        field: v(latents, sigma).
        reference: (T + 1, N, ...) the teacher's latents; the first are the noise.
        sigmas: T + 1 noise levels.
        most: the largest number of steps asked for.

    Returns:
        {i: the i steps computed, ascending, the first one 0} for i = 1 .. most.
    """
    last = len(sigmas) - 1
    # By noise level: the best state so far, and the computed steps that led to it.
    reached: dict[int, tuple[torch.Tensor, tuple[int, ...]]] = {0: (reference[0], ())}
    found: dict[int, tuple[int, ...]] = {}
    for count in range(1, most + 1):
        best: dict[int, tuple[torch.Tensor, tuple[int, ...]]] = {}
        errors: dict[int, float] = {}
        for start, (state, path) in reached.items():
            velocity = field(state, sigmas[start])
            for stop in range(start + 1, last + 1):
                candidate = state + (sigmas[stop] - sigmas[start]) * velocity
                error = float((candidate - reference[stop]).square().mean())
                if error < errors.get(stop, float("inf")):
                    errors[stop] = error
                    best[stop] = (candidate, (*path, start))
        found[count] = best.pop(last)[1]
        reached = best
    return found


def optimal_schedules(data: CalibrationData) -> list[Schedule]:
    """Optimal Stepsize at each budget: plain Euler steps, {start: 1}, in every jump."""
    if not data.budgets:
        return []
    sigmas, total = data.grid.sigmas, data.grid.num_inference_steps
    with torch.no_grad():
        steps = optimal_steps(data.field, data.reference, sigmas, max(data.budgets))
    return [
        data.schedule(
            "optimal-stepsize",
            budget,
            [Edge(t, s, weights={t: 1.0}) for t, s in pairwise((*steps[budget], total))],
            SOURCE,
            "without amplitude calibration",
        )
        for budget in data.budgets
    ]
