"""Optimal Stepsize, written from the paper (arXiv:2503.21774).

The Euler solution with few steps that follows a teacher's, by dynamic programming: the best
state that i steps can bring to noise level j is one Euler step from the best state that i - 1
steps can bring to some level before. Amplitude calibration, the paper's second part, is left out:
it changes the model's input, which a schedule does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch

from meancache.schedule import Edge, Schedule

SOURCE = "written from arXiv:2503.21774"
Velocity = Callable[[torch.Tensor, float], torch.Tensor]


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


def optimal_schedules(
    field: Velocity, reference: torch.Tensor, schedules: Mapping[int, Schedule]
) -> list[Schedule]:
    """A schedule of plain Euler steps for the budget of each of the given schedules.

    Args:
        field: v(latents, sigma) of N calibration trajectories.
        reference: (T + 1, N, ...) their latents at every noise level.
        schedules: {budget: schedule}, from which all but the edges are taken.

    Returns:
        Schedules with method 'optimal-stepsize' and weights {start: 1}.
    """
    sigmas = next(iter(schedules.values())).grid.sigmas
    with torch.no_grad():
        steps = optimal_steps(field, reference, sigmas, max(schedules))
    return [
        replace(
            schedule,
            method="optimal-stepsize",
            edges=tuple(
                Edge(start, stop, weights={start: 1.0})
                for start, stop in zip(
                    steps[budget], (*steps[budget][1:], len(sigmas) - 1), strict=True
                )
            ),
            gamma=None,
            predicted_cost=None,
            calibration={"source": SOURCE, "trajectories": reference.shape[1]},
        )
        for budget, schedule in schedules.items()
    ]
