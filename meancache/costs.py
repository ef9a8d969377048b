"""What a jump costs with the history that it will have, from the Gram matrix alone.

The paper measures a jump t -> s with a span of the reference run behind it, a history that an
accelerated run does not have. Here a cost belongs to p -> t -> s, where p is the step computed
before t: the displacement error |sigma_s - sigma_t| RMS(u(t, s) - u_hat) of an estimate from v_p
and v_t. Every estimator is linear in the velocities, so G = V V^T / D (`statistics`) holds all of
these costs, for every budget, without the velocities themselves.

A table of costs is costs[p, t, s], (T, T, T + 1) float64, inf where no jump is. The first jump has
no history: it is costs[0, 0, s].
"""

from __future__ import annotations

import numpy as np

from meancache.velocity import average_velocities

# Keeps two all but parallel velocities from cancelling each other out of rounding errors.
RIDGE = 1e-9


def secant_costs(gram: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
    """The cost of every p -> t -> s where u_hat is the secant's (`velocity.secant_velocity`).

    Args:
        gram: (T, T) float64, the mean of V V^T / D over trajectories.
        sigmas: (T + 1,) float64.
    """
    costs = _no_costs(len(gram))
    for start in range(len(gram)):
        jumps = _Jumps(gram, sigmas, start)
        weights = np.zeros_like(jumps.right)
        if start > 0:
            ahead = jumps.averages @ sigmas[:-1] - sigmas[start]
            behind = sigmas[start] - sigmas[jumps.previous]
            weights += (ahead / behind[:, None])[..., None] * np.array([-1.0, 1.0])
        costs[jumps.previous, start, start + 1 :] = jumps.errors(weights)
    return costs


def least_squares_costs(gram: np.ndarray, sigmas: np.ndarray, terms: int) -> np.ndarray:
    """The cost of every p -> t -> s where u_hat is the best fit to u(t, s) on recent velocities.

    Args:
        gram: (T, T) float64.
        sigmas: (T + 1,) float64.
        terms: 1 fits on v_t alone, 2 on v_p and v_t.
    """
    scale = RIDGE * np.trace(gram) / len(gram)
    costs = _no_costs(len(gram))
    for start in range(len(gram)):
        jumps = _Jumps(gram, sigmas, start)
        weights = np.zeros_like(jumps.right)
        if terms == 1 or start == 0:
            weights[..., 1] = jumps.right[..., 1] / (gram[start, start] + scale)
        else:
            normal = jumps.normal + scale * np.eye(2)
            weights = np.linalg.solve(normal, jumps.right.swapaxes(1, 2)).swapaxes(1, 2)
        costs[jumps.previous, start, start + 1 :] = jumps.errors(weights)
    return costs


class _Jumps:
    """All jumps p -> t -> s from one step t, and how far an estimate is from u(t, s).

    Attributes:
        averages: (S, T) the rows of u(t, s), for every s.
        previous: (P,) the steps p < t; step 0 alone for the first jump, which has no history.
        normal: (P, 2, 2) products of the velocities v_p and v_t with each other.
        right: (P, S, 2) their products with u(t, s) - v_t, for every s.
    """

    def __init__(self, gram: np.ndarray, sigmas: np.ndarray, start: int) -> None:
        self.averages = average_velocities(sigmas, start)
        # Beyond v_t itself, so that a unit step costs nothing to the last bit.
        missing = self.averages.copy()
        missing[:, start] -= 1.0
        products = missing @ gram
        self.previous = np.arange(max(1, start))
        pairs = np.stack([self.previous, np.full_like(self.previous, start)], axis=1)
        self.normal = gram[pairs[:, :, None], pairs[:, None, :]]
        self.right = products.T[pairs].swapaxes(1, 2)
        self._squares = (products * missing).sum(axis=1)
        self._lengths = np.abs(sigmas[start + 1 :] - sigmas[start])

    def errors(self, weights: np.ndarray) -> np.ndarray:
        """|sigma_s - sigma_t| RMS(u(t, s) - v_t - w . (v_p, v_t)): (P, S, 2) to (P, S)."""
        squares = self._squares + (weights * (weights @ self.normal - 2 * self.right)).sum(axis=2)
        return self._lengths * np.sqrt(np.maximum(squares, 0.0))


def _no_costs(steps: int) -> np.ndarray:
    return np.full((steps, steps, steps + 1), np.inf)
