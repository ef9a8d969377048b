"""HiCache, written from the paper (arXiv:2508.16984).

TaylorSeer with Hermite polynomials in place of monomials: v_{t+k} is forecast as
v_t + sum_i (d^i v / i!) s^i H_i(s k), where d^i v are differences per step of the velocities
computed last and s < 1 contracts the basis. Computed steps are evenly spaced. Here it acts on the
output's velocity. The contraction, the order and the steps computed at first are chosen on the
calibration runs for each budget.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.polynomial import hermite

from meancache.baselines.calibration_data import CalibrationData
from meancache.baselines.forecasts import Forecast, even_steps, forecast_edges
from meancache.schedule import Schedule

SOURCE = "written from arXiv:2508.16984"
CONTRACTIONS = (0.5, math.sqrt(0.5))


def hicache_schedules(data: CalibrationData) -> list[Schedule]:
    """HiCache at each budget, with the settings that suit the calibration runs best."""
    sigmas, total = data.grid.array(), data.grid.num_inference_steps
    return [
        data.best(
            data.schedule(
                "hicache",
                budget,
                forecast_edges(
                    sigmas, even_steps(total, budget, first, last), contracted(scale, order)
                ),
                SOURCE,
                f"order {order}, contraction {scale:.2g}, the first {first} and the last {last} "
                "steps computed",
            )
            for scale, order in itertools.product(CONTRACTIONS, (1, 2))
            for first, last in ((1, 0), (3, 0), (2, 1))
            if first + last <= budget
        )
        for budget in data.budgets
    ]


def contracted(scale: float, order: int) -> Forecast:
    """The forecast by Hermite polynomials of the physicists, contracted by `scale`."""

    def forecast(known: Sequence[int], step: int) -> np.ndarray:
        derivatives = differences(known[-order - 1 :])
        terms = np.zeros(len(known))
        for i, row in enumerate(derivatives):
            basis = scale**i * hermite.hermval(scale * (step - known[-1]), np.eye(i + 1)[i])
            terms[len(known) - len(row) :] += basis / math.factorial(i) * row
        return terms

    return forecast


def differences(nodes: Sequence[int]) -> list[np.ndarray]:
    """Backward differences per step at the last node, of order 0 .. len(nodes) - 1.

    Order i is the difference of two of order i - 1, divided by the distance of the last nodes, as
    TaylorSeer takes them.

    Returns:
        Rows of weights of the velocities at `nodes`; (len(nodes),) each.
    """
    table = [np.eye(len(nodes))]
    for _ in nodes[1:]:
        before = table[-1]
        gaps = np.diff(nodes)[len(nodes) - len(before) :]
        table.append((before[1:] - before[:-1]) / gaps[:, None])
    return [rows[-1] for rows in table]
