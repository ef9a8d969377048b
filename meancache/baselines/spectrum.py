"""Spectrum, written from the paper (arXiv:2603.01623).

Velocities are taken for a smooth function of time, a sum of Chebyshev polynomials, whose
coefficients are fitted by ridge regression to all velocities computed so far and then evaluated at
a skipped step; blended with the line through the last two. After a warm-up, the distance between
computed steps grows. The paper's degree and ridge are kept; warm-up, distances and the blend are
chosen on the calibration runs for each budget.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.polynomial import chebyshev

from meancache.baselines.calibration_data import CalibrationData
from meancache.baselines.forecasts import Forecast, forecast_edges, taylor
from meancache.schedule import Schedule

SOURCE = "written from arXiv:2603.01623"
DEGREE = 4
RIDGE = 0.1
WARM_UPS = (2, 3, 5)
GROWTHS = (0.0, 0.5, 1.0)
BLENDS = (0.5, 1.0)


def spectrum_schedules(data: CalibrationData) -> list[Schedule]:
    """Spectrum at each budget, with the settings that suit the calibration runs best."""
    sigmas, total = data.grid.array(), data.grid.num_inference_steps
    return [
        data.best(
            data.schedule(
                "spectrum",
                budget,
                forecast_edges(sigmas, steps, smooth(total, DEGREE, RIDGE, blend)),
                SOURCE,
                f"warm-up {warm_up}, growth {growth:g}, blend {blend:g}",
            )
            for warm_up, growth, steps in growing_steps(total, budget)
            for blend in BLENDS
        )
        for budget in data.budgets
    ]


def growing_steps(total: int, budget: int) -> Iterator[tuple[int, float, tuple[int, ...]]]:
    """Warm-ups and growths with the smallest first distance that keeps to `budget`.

    Yields:
        (steps computed at first, growth of the distance at each computed step, computed steps).
    """
    for warm_up, growth in itertools.product(WARM_UPS, GROWTHS):
        if warm_up <= budget or warm_up == WARM_UPS[0]:
            yield next(
                (warm_up, growth, steps)
                for window in np.arange(1.0, 2 * total, 0.25)
                for steps in [_growing(total, min(warm_up, budget), window, growth)]
                if len(steps) <= budget
            )


def _growing(total: int, warm_up: int, gap: float, growth: float) -> tuple[int, ...]:
    steps, step = set(range(warm_up)), warm_up - 1.0
    while round(step + gap) < total:
        step += gap
        gap += growth
        steps.add(round(step))
    return tuple(sorted(steps))


def smooth(total: int, degree: int, ridge: float, blend: float) -> Forecast:
    """The forecast by ridge regression on Chebyshev polynomials of time.

    Args:
        total: T; time runs from -1 at step 0 to 1 at step T - 1.
        degree: of the highest polynomial.
        ridge: added to the diagonal of the normal matrix.
        blend: 1 is the regression alone, 0 the line alone.
    """
    basis = chebyshev.chebvander(np.linspace(-1.0, 1.0, total), degree)

    def forecast(known: Sequence[int], step: int) -> np.ndarray:
        features = basis[list(known)]
        normal = features.T @ features + ridge * np.eye(degree + 1)
        return blend * (features @ np.linalg.solve(normal, basis[step])) + (1 - blend) * taylor(
            known, step
        )

    return forecast
