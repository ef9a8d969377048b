"""The search of the computed steps, on a gang: what it fits on, what it judges by, what it gained.

Three sets of calibration runs, of different prompts where there are several: weights are fitted on
the first, paths are chosen by the first and the second, and what that gained is measured on the
third, which had no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jobs._shared.predictions import runs
from meancache.errors import SolverError
from meancache.propagation import Propagation
from meancache.quality import MOST_DECIBELS, Summary
from meancache.schedule import Edge, Schedule
from meancache.search import Found, Tried, search
from meancache.solver import Steps

if TYPE_CHECKING:
    from cluster.ranks.renderer import Renderer
    from meancache.fitting import Fitter
    from meancache.grid import Grid

# How many trajectories a search has, where nothing else is said, and from how many on `refresh`
# searches unasked: with fewer it overfits.
TRAJECTORIES, WORTH_IT = 40, 24
# What `refresh` gives the search of each budget, in full videos.
VIDEOS = 100
FITTED_SHARE, CHOSEN_SHARE = 1 / 2, 4 / 5


class Split(NamedTuple):
    """Weights are fitted on the first so many trajectories, and paths chosen by so many; what is
    left measures the gain."""

    fitted: int
    chosen: int

    def unseen(self, trajectories: Sequence[tuple[str, int]]) -> int:
        """The first of the trajectories that predict: those that are left, or all where these are
        not of two prompts."""
        left = {prompt for prompt, _ in trajectories[self.chosen :]}
        return self.chosen if len(left) > 1 else 0


@dataclass(frozen=True)
class Searched:
    """What came of a search.

    Attributes:
        found: the path.
        before: PSNR in dB of the videos that had no part in it, on the first path; may be none.
        after: on the path that was found.
    """

    found: Found
    before: tuple[float, ...]
    after: tuple[float, ...]

    def sentence(self, budget: int, steps: int) -> str:
        """What it cost and gained; `steps` is what a full video takes."""
        said = (
            f"search at B = {budget}: {self.found.tried} paths tried in "
            f"{self.found.forwards / steps:.0f} full videos"
        )
        if not self.before:
            return f"{said}; no calibration run was left to measure the gain on"
        before, after = (np.minimum(each, MOST_DECIBELS) for each in (self.before, self.after))
        return (
            f"{said}; on {runs(len(before))} that had no part in it PSNR changed by "
            f"{Summary.of(list(after - before)).signed()} dB, the worst from {before.min():.1f} to "
            f"{after.min():.1f}"
        )


def split(trajectories: Sequence[tuple[str, int]]) -> Split:
    """Half is fitted on, three tenths judge too, and a fifth measures what was gained.

    Prompts are on one side of a border each, where there are enough of them.

    Raises:
        SolverError: there are not two trajectories.
    """
    count = len(trajectories)
    if count < 2:
        raise SolverError(
            f"a search fits on some trajectories and judges by others, and there is {count}: "
            "calibrate more prompts, or leave --search out"
        )
    prompts = [prompt for prompt, _ in trajectories]
    borders = [at for at in range(1, count) if prompts[at] != prompts[at - 1]]
    fitted = _nearest(borders or range(1, count), FITTED_SHARE * count)
    later = [at for at in borders if at > fitted] if borders else range(fitted + 1, count)
    return Split(fitted, _nearest([*later, count], CHOSEN_SHARE * count))


def _nearest(borders: Sequence[int], wanted: float) -> int:
    return min(borders, key=lambda border: abs(border - wanted))


def searched(
    renderer: Renderer,
    fitter: Fitter,
    grid: Grid,
    paths: Sequence[Steps],
    grams: np.ndarray,
    parts: Split,
    forwards: int,
) -> Searched:
    """Searches; comes to the same on all ranks, as every decision is rank 0's.

    Args:
        renderer: the rank's.
        fitter: with the trajectories.
        grid: the schedules' noise levels.
        paths: where to begin.
        grams: (N, T, T), one a trajectory.
        parts: of the trajectories.
        forwards: that the search may take, each call of a step counted once.
    """
    from meancache.fitting import ORDER, RIDGE  # with diffusers

    edges: dict[Steps, tuple[Edge, ...]] = {}

    def trial(asked: Sequence[Steps]) -> Mapping[Steps, Tried]:
        fits = fitter.fit(asked, parts.chosen, parts.fitted)
        edges.update({path: fit.edges for path, fit in fits.items()})
        tried = {path: Tried(fit.errors, fit.responses) for path, fit in fits.items()}
        shared: Mapping[Steps, Tried] = renderer.broadcast(tried)
        return shared

    propagation = Propagation(
        grams[: parts.chosen], grid.array(), parts.fitted, order=ORDER, ridge=RIDGE
    )
    found = search(trial, propagation, paths, forwards)
    before, after = (
        fitter.fidelity(
            Schedule(grid, edges[path], method="fitted", budget=len(path)),
            slice(parts.chosen, None),
        )
        for path in (found.first, found.steps)
    )
    return Searched(found, tuple(before), tuple(after))
