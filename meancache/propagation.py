"""Predicts where paths end without running them: errors carried on through a linear model.

A run that leaves its reference by e at step t has another velocity there. To first order the
difference is a matrix times e; here it is a number times e, and a number times |e| in a direction
of its own, both measured on runs that were made anyway. With that, and with the Gram matrix of a
trajectory's velocities, the on-policy fit (`fitting`) can be followed in the span of these
velocities: a state is a row of T coefficients a trajectory, not a video, and a path takes
milliseconds of a core. What comes out ranks paths; what a path is worth its runs say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from meancache.solver import Steps
from meancache.velocity import average_velocities

Response = tuple[float, float]
"""What a run's velocity does with an error e: <v - v_ref, e> / <e, e>, and the length of the rest
of v - v_ref, in |e|."""
Responses = Mapping[int, Sequence[Response] | np.ndarray]
"""Computed step -> the responses there, one a trajectory: (N, 2)."""


class Propagation:
    """What is known of a few trajectories: their Gram matrices, and how errors grow in them.

    Args:
        grams: (N, T, T) float64, each V V^T / D.
        sigmas: (T + 1,) float64.
        fitted_on: weights are fitted on the first so many of them.
        order: of how many velocities.
        ridge: towards holding the velocity, relative to its mean square.
    """

    def __init__(
        self, grams: np.ndarray, sigmas: np.ndarray, fitted_on: int, order: int, ridge: float
    ) -> None:
        count, self.total, _ = grams.shape
        self.grams = grams
        self.sigmas = sigmas
        self.averages = [average_velocities(sigmas, start) for start in range(self.total)]
        self.fitted_on, self.order, self.ridge = fitted_on, order, ridge
        self._sums = np.zeros((self.total, count, 2))
        self._counts = np.zeros(self.total)
        self._learnt: np.ndarray | None = None
        self._known: dict[Steps, tuple[np.ndarray, list[np.ndarray]]] = {}

    def learn(self, responses: Responses) -> None:
        """Takes the responses of one path's runs into account."""
        for step, found in responses.items():
            self._sums[step] += found
            self._counts[step] += 1
        self._learnt = None
        self._known.clear()

    def errors(self, steps: Steps) -> np.ndarray:
        """(N,) the mean squares of the errors in which runs on these steps should end."""
        missed = self._jumped(steps, self.total)
        return self._squares(missed)

    def _products(self, rows: np.ndarray) -> np.ndarray:
        """(N, J, 2 T) rows times their Gram matrices.

        The first T directions are the velocities; the others, one for the response at each step,
        are at right angles to all.
        """
        found = rows.copy()
        found[..., : self.total] = rows[..., : self.total] @ self.grams
        return found

    def _squares(self, rows: np.ndarray) -> np.ndarray:
        """(N,) the mean squares of (N, 2 T) rows."""
        squares = (self._products(rows[:, None])[:, 0] * rows).sum(axis=1)
        return np.maximum(squares, 0.0)

    def _responses(self) -> np.ndarray:
        """(T, N, 2): the means of what was learnt, between steps interpolated."""
        if self._learnt is None:
            self._learnt = np.zeros_like(self._sums)
            known = np.flatnonzero(self._counts)
            if len(known):
                means = self._sums[known] / self._counts[known, None, None]
                for which in np.ndindex(means.shape[1:]):
                    column = means[(slice(None), *which)]
                    self._learnt[(slice(None), *which)] = np.interp(
                        range(self.total), known, column
                    )
        return self._learnt

    def _computed(self, prefix: Steps) -> tuple[np.ndarray, list[np.ndarray]]:
        """At the newest step of `prefix`: how far the runs are off, and their last velocities."""
        if prefix not in self._known:
            step = prefix[-1]
            missed, before = np.zeros((len(self.grams), 2 * self.total)), list[np.ndarray]()
            if len(prefix) > 1:
                missed = self._jumped(prefix[:-1], step)
                _, before = self._computed(prefix[:-1])
            along, aside = self._responses()[step].T
            velocity = along[:, None] * missed
            velocity[:, step] += 1.0
            velocity[:, self.total + step] += aside * np.sqrt(self._squares(missed))
            self._known[prefix] = missed, [velocity, *before[: self.order - 1]]
        return self._known[prefix]

    def _jumped(self, prefix: Steps, stop: int) -> np.ndarray:
        """How far the runs are off after a jump, with weights fitted as in `fitting`."""
        missed, history = self._computed(prefix)
        start = prefix[-1]
        length = self.sigmas[stop] - self.sigmas[start]
        average = np.zeros(2 * self.total)
        average[: self.total] = self.averages[start][stop - start - 1]
        features = np.stack(history, axis=1)
        products = self._products(features)
        wanted = average - missed / length - history[0]
        normal = (products @ features.swapaxes(1, 2))[: self.fitted_on].sum(axis=0)
        right = np.einsum("nji,ni->nj", products, wanted)[: self.fitted_on].sum(axis=0)
        scale = self.ridge * np.trace(normal) / len(normal)
        weights = np.linalg.solve(normal + scale * np.eye(len(normal)), right)
        weights[0] += 1.0
        return missed + length * (np.einsum("j,nji->ni", weights, features) - average)
