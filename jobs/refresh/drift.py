"""Drift: how tonight's costs stand against those of earlier nights, step by step.

The cost of a step is what it costs to skip the next one: eq. 13 of the jump t -> t + 2 with the
velocity of t held. Costs are compared by their logarithms, as what changes a model changes them by
a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from meancache.calibration import Calibration, edge_list

# Nights that are looked back on.
NIGHTS = 30
# How often all steps together may raise an alarm where nothing has changed: once in 1000 nights.
FALSE_ALARMS = 1e-3
# Below this a cost is rounding alone.
LEAST_COST = 1e-12


@dataclass(frozen=True)
class Drift:
    """Costs per step, tonight's and the usual; all arrays (T - 1,) float64.

    Attributes:
        nights: how many earlier nights it looks back on.
        trajectories: how many of theirs there are.
        differs: in what the earlier nights' setting differs from tonight's, in words.
        tonight: geometric mean over tonight's trajectories.
        usual: geometric mean over the earlier ones.
        low: the least that a night like the earlier ones has, in all but FALSE_ALARMS of nights.
        high: the most.
    """

    nights: int
    trajectories: int
    differs: tuple[str, ...]
    tonight: np.ndarray
    usual: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def moved(self) -> list[int]:
        """The steps whose cost is beyond the spread of the earlier nights."""
        return np.flatnonzero((self.tonight < self.low) | (self.tonight > self.high)).tolist()

    def __str__(self) -> str:
        what = f"{self.nights} earlier night{'s' * (self.nights != 1)}"
        where = f" of another setting ({'; '.join(self.differs)})" if self.differs else ""
        if not self.moved:
            return f"no drift: every step costs what it did in {what}{where}"
        change = self.tonight[self.moved] / self.usual[self.moved]
        most = change[np.argmax(np.abs(np.log(change)))]
        return (
            f"drift: {len(self.moved)} of {len(self.tonight)} steps cost more or less than the "
            f"spread of {what}{where} allows, at most {most:.2f} times the usual"
        )


def drift(
    tonight: Calibration,
    earlier: Sequence[Calibration],
    differs: Sequence[str] = (),
) -> Drift | None:
    """Compares a night's costs with those of earlier nights of the same number of steps.

    A night's mean may differ from the earlier ones' by Student's t times the spread of single
    trajectories, s sqrt(1/n + 1/N), with the alarms shared out over the steps (Bonferroni).

    Args:
        tonight: the night's own trajectories.
        earlier: those of each earlier night.
        differs: in what their setting differs, in words.

    Returns:
        None where the earlier nights have fewer than two trajectories: they have no spread.
    """
    now = log_costs(tonight)
    before = np.concatenate([np.empty((0, now.shape[1])), *map(log_costs, earlier)])
    if len(before) < 2:
        return None
    usual = before.mean(axis=0)
    alarms = FALSE_ALARMS / (2 * now.shape[1])
    reach = stdtrit(len(before) - 1, 1 - alarms) * np.sqrt(1 / len(now) + 1 / len(before))
    spread = reach * before.std(axis=0, ddof=1)
    return Drift(
        nights=len(earlier),
        trajectories=len(before),
        differs=tuple(differs),
        tonight=np.exp(now.mean(axis=0)),
        usual=np.exp(usual),
        low=np.exp(usual - spread),
        high=np.exp(usual + spread),
    )


def log_costs(graph: Calibration) -> np.ndarray:
    """(n, T - 1) float64: of each trajectory and step t the log of the cost of t -> t + 2."""
    steps = graph.grid.num_inference_steps
    places = {edge: index for index, edge in enumerate(edge_list(steps))}
    chosen = [places[step, step + 2, 1] for step in range(steps - 1)]
    l1 = np.stack([graph.trajectories[key].l1 for key in sorted(graph.trajectories)])
    return np.log(np.maximum(l1[:, chosen], LEAST_COST))
