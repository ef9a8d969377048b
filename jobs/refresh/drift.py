"""Drift: how a run's costs compare with those of earlier runs, step by step.

The cost of a step is what it costs to skip the next one: eq. 13 of the jump t -> t + 2 with the
velocity of t held. Costs are compared by their logarithms, as what changes a model changes them by
a factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from meancache.calibration import Calibration
from meancache.statistics import edge_list

# Runs that are looked back on.
RUNS = 30
# How often all steps together may raise an alarm where nothing has changed: once in 1000 runs.
FALSE_ALARMS = 1e-3
# Below this a cost is rounding alone.
LEAST_COST = 1e-12


@dataclass(frozen=True)
class Drift:
    """Costs per step, this run's and the usual; all arrays (T - 1,) float64.

    Attributes:
        runs: how many earlier runs it looks back on.
        trajectories: how many of theirs there are.
        differs: in what the earlier runs' setting differs from this one's, in words.
        latest: geometric mean over this run's trajectories.
        usual: geometric mean over the earlier ones.
        low: the least that a run like the earlier ones has, in all but FALSE_ALARMS of runs.
        high: the most.
    """

    runs: int
    trajectories: int
    differs: tuple[str, ...]
    latest: np.ndarray
    usual: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def moved(self) -> list[int]:
        """The steps whose cost is beyond the spread of the earlier runs."""
        return np.flatnonzero((self.latest < self.low) | (self.latest > self.high)).tolist()

    def __str__(self) -> str:
        what = f"{self.runs} earlier run{'s' * (self.runs != 1)}"
        where = f" of another setting ({'; '.join(self.differs)})" if self.differs else ""
        if not self.moved:
            return f"no drift: every step costs what it did in {what}{where}"
        change = self.latest[self.moved] / self.usual[self.moved]
        most = change[np.argmax(np.abs(np.log(change)))]
        return (
            f"drift: {len(self.moved)} of {len(self.latest)} steps cost more or less than the "
            f"spread of {what}{where} allows, at most {most:.2f} times the usual"
        )


def drift(
    latest: Calibration,
    earlier: Sequence[Calibration],
    differs: Sequence[str] = (),
) -> Drift | None:
    """Compares a run's costs with those of earlier runs of the same number of steps.

    A run's mean may differ from the earlier ones' by Student's t times the spread of single
    trajectories, s sqrt(1/n + 1/N), with the alarms shared out over the steps (Bonferroni).

    Args:
        latest: the run's own trajectories.
        earlier: those of each earlier run.
        differs: in what their setting differs, in words.

    Returns:
        None where the earlier runs have fewer than two trajectories: they have no spread.
    """
    now = log_costs(latest)
    before = np.concatenate([np.empty((0, now.shape[1])), *map(log_costs, earlier)])
    if len(before) < 2:
        return None
    usual = before.mean(axis=0)
    alarms = FALSE_ALARMS / (2 * now.shape[1])
    reach = stdtrit(len(before) - 1, 1 - alarms) * np.sqrt(1 / len(now) + 1 / len(before))
    spread = reach * before.std(axis=0, ddof=1)
    return Drift(
        runs=len(earlier),
        trajectories=len(before),
        differs=tuple(differs),
        latest=np.exp(now.mean(axis=0)),
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
