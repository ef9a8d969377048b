"""Whether weights that were fitted on runs of the model can be carried to other noise levels.

    python -m meancache.tiny.training.carried_weights

At each grid and budget, the mean PSNR in dB of the latents of held-out videos, against the full run
on that grid, by schedules that compute the same steps or those nearest to them:

    off-policy   what a carried calibration gives (`Calibration.schedule`)
    as fitted    the steps nearest to those of 50 steps and shift 7, with the weights fitted there
    difference   the same steps; the weights of the carried matrix, and what fitting on runs of the
                 model had changed in those of 50 steps and shift 7
    own          the same steps, with weights fitted on runs of the model on the grid itself

Takes minutes on a core.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch

from meancache.calibration import Calibration
from meancache.fitting import ORDER
from meancache.methods import candidate_paths, least_squares_weights
from meancache.schedule import Edge
from meancache.search import decibels
from meancache.solver import Steps
from meancache.statistics import trajectory_statistics
from meancache.tiny.captions import CALIBRATION, HELD_OUT
from meancache.tiny.training import batch
from meancache.tiny.training.batch import Batch, make_batch
from meancache.tiny.training.table import pipeline_at
from meancache.velocity import average_velocity

BUDGETS = (8, 10, 12)
GRIDS = ((30, 7.0), (30, 5.0), (40, 12.0))
RUNS, PAIRS = 10, 24


def main() -> None:
    """Prints a line a grid and budget."""
    torch.set_num_threads(1)
    with torch.no_grad():
        runs = make_batch(pipeline_at(7.0), CALIBRATION[:RUNS], seed=1000)
        calibration = calibrated(runs)
        paths = {budget: all_[0] for budget, all_ in candidate_paths(calibration, BUDGETS).items()}
        fitted = {budget: batch.fit(runs, steps)[0] for budget, steps in paths.items()}
        for steps, shift in GRIDS:
            pipeline = pipeline_at(shift)
            held_out = make_batch(pipeline, HELD_OUT[:PAIRS], seed=5000, steps=steps)
            own = make_batch(pipeline, CALIBRATION[:RUNS], seed=1000, steps=steps)
            there = calibration.on(held_out.field.grid)
            for budget in BUDGETS:
                near = nearest(calibration, paths[budget], there)
                known = by_place(fitted[budget])
                learnt = difference(known, by_place(off_policy(calibration, paths[budget])))
                plain = off_policy(there, near)
                found = {
                    "off-policy": calibration.schedule(there.grid, budget).edges,
                    "as fitted": moved(plain, known, {}),
                    "difference": moved(plain, by_place(plain), learnt),
                    "own": batch.fit(own, near)[0],
                }
                scores = [f"{name} {score(held_out, one):5.1f}" for name, one in found.items()]
                print(f"{steps} steps, shift {shift:g}, B = {budget:2}: {', '.join(scores)}")


def calibrated(runs: Batch) -> Calibration:
    """The runs' calibration."""
    grid = runs.field.grid
    h = torch.tensor(np.diff(grid.array()), dtype=torch.float32).view(-1, 1, 1)
    velocities = runs.reference.flatten(2).diff(dim=0) / h
    return Calibration(grid).add(
        trajectory_statistics(velocities[:, i], grid, f"{i}", 0) for i in range(len(runs))
    )


def nearest(source: Calibration, steps: Steps, there: Calibration) -> Steps:
    """The steps of another grid at the levels nearest to those of `steps`, as many of them."""
    levels = there.grid.array()[:-1]
    found: list[int] = []
    for number, step in enumerate(steps):
        left = len(steps) - number - 1
        free = np.arange(found[-1] + 1 if found else 0, len(levels) - left)
        found.append(int(free[np.abs(levels[free] - source.grid.sigmas[step]).argmin()]))
    return tuple(found)


def off_policy(calibration: Calibration, steps: Steps) -> list[Edge]:
    """Weights of the calibration's own matrix, of as many terms as `fitting` has."""
    gram, sigmas = calibration.gram(), calibration.grid.array()
    edges = []
    for number, (t, s) in enumerate(pairwise((*steps, len(gram)))):
        known = steps[max(0, number - ORDER + 1) : number + 1]
        weights = least_squares_weights(gram, average_velocity(sigmas, t, s), known)
        edges.append(Edge(t, s, weights=weights))
    return edges


Places = Mapping[tuple[int, int], float]
"""(jump, how many computed steps ago) -> weight."""


def by_place(edges: Sequence[Edge]) -> Places:
    """The weights of a schedule by where they stand in it."""
    return {
        (jump, ago): weight
        for jump, edge in enumerate(edges)
        for ago, (_, weight) in enumerate(sorted((edge.weights or {}).items(), reverse=True))
    }


def difference(one: Places, other: Places) -> Places:
    """What `one` has more."""
    return {place: one[place] - other[place] for place in one}


def moved(edges: Sequence[Edge], weights: Places, more: Places) -> list[Edge]:
    """The same jumps with other weights, and more of them."""
    found = []
    for jump, edge in enumerate(edges):
        known = sorted(edge.weights or {}, reverse=True)
        sums = {
            step: weights[jump, ago] + more.get((jump, ago), 0.0) for ago, step in enumerate(known)
        }
        found.append(Edge(edge.start, edge.stop, weights=sums))
    return found


def score(held_out: Batch, edges: Sequence[Edge]) -> float:
    """Mean PSNR of the latents, dB."""
    sigmas, latents = held_out.field.grid.sigmas, held_out.reference[0]
    known: dict[int, torch.Tensor] = {}
    for edge in edges:
        known[edge.start] = held_out.field(latents, sigmas[edge.start])
        velocity = sum(
            (weight * known[step] for step, weight in (edge.weights or {}).items()),
            torch.zeros_like(latents),
        )
        latents = latents + (sigmas[edge.stop] - sigmas[edge.start]) * velocity
    return float(decibels(batch.errors(held_out, latents)).mean())


if __name__ == "__main__":
    main()
