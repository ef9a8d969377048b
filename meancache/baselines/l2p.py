"""L2P, written from the paper (arXiv:2604.26365).

The steps that are computed are fixed and nearly even. Every skipped step has its own weights for
all velocities computed before it, those that reconstruct it best on calibration runs, by least
squares. The paper finds them by gradient on features of the model; here they are solved for, from
the Gram matrix of the output's velocities. Which steps at the ends are all computed is chosen on
the calibration runs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from meancache.baselines.calibration_data import CalibrationData
from meancache.baselines.forecasts import Forecast, even_steps, forecast_edges
from meancache.schedule import Schedule

SOURCE = "written from arXiv:2604.26365"
# Against weights that cancel each other out, relative to the mean square of a velocity.
RIDGE = 1e-6


def l2p_schedules(data: CalibrationData) -> list[Schedule]:
    """L2P at each budget, with the ends that suit the calibration runs best."""
    gram, sigmas = data.statistics.gram(), data.grid.array()
    return [
        data.best(
            data.schedule(
                "l2p",
                budget,
                forecast_edges(sigmas, steps, reconstruction(gram)),
                SOURCE,
                f"the first {first} and the last {last} steps computed",
            )
            for first, last in itertools.product((1, 2, 3), (0, 1, 2))
            if first + last <= budget
            for steps in [even_steps(len(gram), budget, first, last)]
        )
        for budget in data.budgets
    ]


def reconstruction(gram: np.ndarray) -> Forecast:
    """The forecast with the least mean squared error on the trajectories of a Gram matrix.

    Args:
        gram: (T, T) float64, the mean of V V^T / D over trajectories.
    """
    ridge = RIDGE * np.trace(gram) / len(gram)

    def forecast(known: Sequence[int], step: int) -> np.ndarray:
        normal = gram[np.ix_(known, known)] + ridge * np.eye(len(known))
        return np.linalg.solve(normal, gram[known, step])

    return forecast
