"""Caches that forecast skipped velocities from computed ones, as weighted schedules.

A forecast gives every skipped step its own combination of velocities computed before. Only their
sum over a jump reaches the next computed step, so the jump has one combination, the mean of its
steps' own, weighted with their lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from meancache.schedule import Edge

Forecast = Callable[[Sequence[int], int], np.ndarray]
"""(computed steps so far, ascending; a step k after them) -> weights of their velocities."""


def forecast_edges(sigmas: np.ndarray, steps: Sequence[int], forecast: Forecast) -> list[Edge]:
    """The edges of a run that computes `steps` and forecasts every other step.

    Args:
        sigmas: (T + 1,) float64 noise levels.
        steps: computed steps, from 0, ascending.
        forecast: weights for the velocity of a skipped step.
    """
    edges = []
    for index, (start, stop) in enumerate(zip(steps, (*steps[1:], len(sigmas) - 1), strict=True)):
        known = list(steps[: index + 1])
        rows = [np.eye(len(known))[-1], *(forecast(known, k) for k in range(start + 1, stop))]
        lengths = np.diff(sigmas[start : stop + 1])
        mean = lengths @ np.stack(rows) / lengths.sum()
        edges.append(Edge(start, stop, weights=dict(zip(known, mean.tolist(), strict=True))))
    return edges


def even_steps(steps: int, budget: int, first: int = 1, last: int = 0) -> tuple[int, ...]:
    """`budget` computed steps of `steps`: the first and the last ones all, between them evenly.

    Args:
        steps: T.
        budget: forwards, 1..T.
        first: how many steps at the beginning are all computed, at least 1.
        last: how many at the end.

    Returns:
        Ascending, `budget` of them where `first` + `last` <= `budget`.
    """
    inner = budget - first - last
    start, stop = first - 1, steps - last
    between = [start + round((stop - start) * i / (inner + 1)) for i in range(1, inner + 1)]
    return tuple(sorted({*range(first), *between, *range(stop, steps)}))


def taylor(known: Sequence[int], step: int) -> np.ndarray:
    """The line through the last two computed velocities, in the step's index (TaylorSeer, order 1).

    Returns:
        (len(known),) weights; the last velocity is held where it is the only one.
    """
    row = np.zeros(len(known))
    row[-1] = 1.0
    if len(known) > 1:
        slope = (step - known[-1]) / (known[-1] - known[-2])
        row[-1] += slope
        row[-2] -= slope
    return row
