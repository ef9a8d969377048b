"""DPCache, written from the paper 'Denoising as Path Planning' (CVPR 2026).

The computed steps are a shortest path whose cost knows what was computed before: computing t and
then s, after p, costs the sum over the skipped steps between t and s of the error of the forecast
from v_p and v_t, on calibration runs. Dynamic programming over pairs finds the optimum. Skipped
steps take the line through the last two. The paper's costs are of features inside the model; here
they are of the output's velocity. How many steps are all computed at first is chosen on the
calibration runs for each budget.
"""

from __future__ import annotations

import numpy as np

from meancache.baselines.calibration_data import CalibrationData
from meancache.baselines.forecasts import forecast_edges, taylor
from meancache.schedule import Schedule
from meancache.solver import solve_pairs

SOURCE = "written from 'Denoising as Path Planning' (DPCache)"


def dpcache_schedules(data: CalibrationData) -> list[Schedule]:
    """DPCache at each budget, with the first steps that suit the calibration runs best."""
    costs, sigmas = path_costs(data.statistics.gram()), data.grid.array()
    return [
        data.best(
            data.schedule(
                "dpcache",
                budget,
                forecast_edges(sigmas, steps, taylor),
                SOURCE,
                f"the first {first} steps computed",
            )
            for first in (1, 2, 3)
            if first <= budget
            for steps in [solve_pairs(with_first(costs, first), [budget], gamma=1.0)[budget]]
        )
        for budget in data.budgets
    ]


def path_costs(gram: np.ndarray) -> np.ndarray:
    """The error of the forecasts between t and s after p, in root mean squares.

    Args:
        gram: (T, T) float64, the mean of V V^T / D over trajectories.

    Returns:
        (T, T, T + 1): costs[p, t, s] for p < t < s, costs[0, 0, s] for the first jump, else inf.
    """
    total = len(gram)
    costs = np.full((total, total, total + 1), np.inf)
    for start in range(total):
        for previous in range(start) if start else [0]:
            known = [previous, start] if previous < start else [start]
            residuals = np.zeros((total - start, total))  # of v_start .. v_{T-1}
            for k in range(start + 1, total):
                residuals[k - start, k] = 1.0
                residuals[k - start, known] -= taylor(known, k)
            squares = np.einsum("ki,ij,kj->k", residuals, gram, residuals, optimize=True)
            costs[previous, start, start + 1 :] = np.sqrt(np.maximum(squares, 0.0)).cumsum()
    return costs


def with_first(costs: np.ndarray, first: int) -> np.ndarray:
    """The costs where the first `first` steps must all be computed."""
    bound = costs.copy()
    for start in range(first - 1):
        bound[:, start, start + 2 :] = np.inf
    return bound
