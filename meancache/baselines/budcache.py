"""BudCache, written from the paper (arXiv:2606.13496).

Simulated annealing over whole sets of computed steps, scored by the final output of eight
calibration runs; skipped steps use the last computed result again. The paper reuses the residual
of the blocks; here it is the output's velocity, so that the sets are searched and run alike.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch

from meancache.baselines.calibration_data import CalibrationData, Velocity
from meancache.baselines.forecasts import even_steps
from meancache.schedule import Edge, Schedule

SOURCE = "written from arXiv:2606.13496"
RUNS = 8
TRIES = 100
# In nats of squared error, at the first and at the last try.
HOT, COLD = 1.0, 0.02

Steps = tuple[int, ...]


def budcache_schedules(data: CalibrationData) -> list[Schedule]:
    """BudCache at each budget; about TRIES / 2 accelerated runs of eight trajectories each."""
    sigmas, total = data.grid.sigmas, data.grid.num_inference_steps
    found = []
    for budget in data.budgets:
        with torch.no_grad():
            score = Reuse(data.field, data.reference, sigmas, RUNS)
            steps = anneal(score, even_steps(total, budget), total, TRIES)
        edges = [Edge(t, s, weights={t: 1.0}) for t, s in pairwise((*steps, total))]
        found.append(data.schedule("budcache", budget, edges, SOURCE, f"{TRIES} tries"))
    return found


def anneal(score: Callable[[Steps], float], steps: Steps, total: int, tries: int) -> Steps:
    """The best of `tries` sets of computed steps, by simulated annealing from a fixed seed.

    A move takes one step, never the first, to another place; a worse set is accepted with
    probability exp(-(difference) / temperature), and the temperature falls from HOT to COLD.

    Args:
        score: lower is better, in nats.
        steps: where to start, ascending from 0.
        total: T.
        tries: how many sets are scored beside the first.
    """
    chance = random.Random(0)
    here, level = steps, score(steps)
    best, lowest = here, level
    for attempt in range(tries if 1 < len(steps) < total else 0):
        temperature = HOT * (COLD / HOT) ** (attempt / tries)
        left = chance.choice(here[1:])
        # Most moves are short: neighbours are nearly as good, and far moves nearly random.
        near = [k for k in range(left - 5, left + 6) if 0 < k < total and k not in here]
        free = [k for k in range(1, total) if k not in here]
        taken = chance.choice(near if near and chance.random() < 0.8 else free)
        there = tuple(sorted({*here, taken} - {left}))
        new = score(there)
        if new <= level or chance.random() < math.exp((level - new) / temperature):
            here, level = there, new
        if new < lowest:
            best, lowest = there, new
    return best


class Reuse:
    """The mean log squared error of the final latents where computed velocities are held.

    What two sets of steps begin with alike is computed once, while it is remembered.
    """

    def __init__(
        self, field: Velocity, reference: torch.Tensor, sigmas: tuple[float, ...], runs: int
    ) -> None:
        """
        Args:
            field: v(latents, sigma) of N runs.
            reference: (T + 1, N, ...) their full runs.
            sigmas: T + 1 noise levels.
            runs: the first so many of the N count.
        """
        self.field, self.sigmas, self.runs = field, sigmas, runs
        self.noise, self.target = reference[0], reference[-1][:runs]
        self.states: dict[Steps, torch.Tensor] = {}

    def __call__(self, steps: Steps) -> float:
        latents, states = self.noise, {}
        for index, (t, s) in enumerate(pairwise((*steps, len(self.sigmas) - 1))):
            key = (*steps[: index + 1], s)
            if key in self.states:
                latents = self.states[key]
            else:
                latents = latents + (self.sigmas[s] - self.sigmas[t]) * self.field(
                    latents, self.sigmas[t]
                )
            states[key] = latents
        self.states = states  # of this set alone: the next one is its neighbour
        missed = (latents[: self.runs] - self.target).square().flatten(1).mean(dim=1)
        return float(np.mean(np.log(missed.clamp(min=1e-30).cpu().double().numpy())))
