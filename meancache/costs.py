"""What a jump costs with the history that it will have, from the Gram matrix alone.

The paper measures a jump t -> s with a span of the reference run behind it, a history that an
accelerated run does not have. Here a cost belongs to p -> t -> s, where p is the step computed
before t: the displacement error |sigma_s - sigma_t| RMS(u(t, s) - u_hat) of an estimate from v_p
and v_t. Every estimator is linear in the velocities, so G = V V^T / D (`stability`) holds all of
these costs, for every budget, without the velocities themselves.

A table of costs is costs[p, t, s], (T, T, T + 1) float64, inf where no jump is. The first jump has
no history: it is costs[0, 0, s].
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from meancache.velocity import average_velocity, secant_velocity

# Keeps two all but parallel velocities from cancelling each other out of rounding errors.
RIDGE = 1e-9


def secant_costs(gram: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """The cost of every p -> t -> s where u_hat is the secant's (`velocity.secant_velocity`).

    Args:
        gram: (T, T) float64, the mean of V V^T / D over trajectories.
        sigmas: (T + 1,) float64.
    """

    def estimates(previous: int, start: int, averages: np.ndarray) -> np.ndarray:
        stops = range(start + 1, len(sigmas))
        return np.stack([secant_velocity(sigmas, previous, start, stop) for stop in stops])

    return _costs(gram, sigmas, estimates)


def least_squares_costs(gram: np.ndarray, sigmas: np.ndarray, terms: int) -> np.ndarray:
    """The cost of every p -> t -> s where u_hat is the best fit to u(t, s) on recent velocities.

    Args:
        gram: (T, T) float64.
        sigmas: (T + 1,) float64.
        terms: 1 fits on v_t alone, 2 on v_p and v_t.
    """
    scale = RIDGE * np.trace(gram) / len(gram)

    def estimates(previous: int, start: int, averages: np.ndarray) -> np.ndarray:
        known = [start] if terms == 1 or previous == start else [previous, start]
        normal = gram[np.ix_(known, known)] + scale * np.eye(len(known))
        rows = np.zeros_like(averages)
        rows[:, known] = np.linalg.solve(normal, (averages @ gram)[:, known].T).T
        return rows

    return _costs(gram, sigmas, estimates)


def _costs(
    gram: np.ndarray,
    sigmas: np.ndarray,
    estimates: Callable[[int, int, np.ndarray], np.ndarray],
) -> np.ndarray:
    """|sigma_s - sigma_t| sqrt(r G r^T) for the residual rows r = u(t, s) - u_hat."""
    steps = len(gram)
    costs = np.full((steps, steps, steps + 1), np.inf)
    for previous, start in _histories(steps):
        stops = range(start + 1, steps + 1)
        averages = np.stack([average_velocity(sigmas, start, stop) for stop in stops])
        residuals = averages - estimates(previous, start, averages)
        squares = np.einsum("sk,kl,sl->s", residuals, gram, residuals, optimize=True)
        lengths = np.abs(sigmas[start + 1 :] - sigmas[start])
        costs[previous, start, start + 1 :] = lengths * np.sqrt(np.maximum(squares, 0.0))
    return costs


def _histories(steps: int) -> Iterator[tuple[int, int]]:
    """(p, t) of every jump but its end."""
    yield 0, 0
    for start in range(1, steps):
        for previous in range(start):
            yield previous, start
