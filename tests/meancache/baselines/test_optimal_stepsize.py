"""Optimal Stepsize's dynamic program, against every path there is."""

import itertools

import numpy as np
import pytest
import torch

from meancache.baselines.optimal_stepsize import optimal_steps

STEPS = 8
SIGMAS = np.linspace(1.0, 0.0, STEPS + 1).tolist()


def euler(velocity, sigmas) -> torch.Tensor:
    states = [torch.ones(1, 3)]
    for sigma, following in itertools.pairwise(sigmas):
        states.append(states[-1] + (following - sigma) * velocity(states[-1], sigma))
    return torch.stack(states)


def curved(latents: torch.Tensor, sigma: float) -> torch.Tensor:
    # Errors of one sign only, so that nearest on the way is nearest at the end.
    return torch.full_like(latents, sigma**3)


@pytest.mark.parametrize("budget", range(1, STEPS + 1))
def test_no_path_ends_nearer_to_the_full_run(budget):
    reference = euler(curved, SIGMAS)

    def error(path) -> float:
        end = euler(curved, [*(SIGMAS[step] for step in path), 0.0])[-1]
        return float((end - reference[-1]).square().mean())

    path = optimal_steps(curved, reference, SIGMAS, STEPS)[budget]
    every = ((0, *rest) for rest in itertools.combinations(range(1, STEPS), budget - 1))
    assert len(path) == budget
    assert error(path) == pytest.approx(min(map(error, every)), rel=1e-4, abs=1e-12)


def test_all_steps_are_the_full_run():
    reference = euler(lambda latents, sigma: latents * sigma, SIGMAS)
    paths = optimal_steps(lambda latents, sigma: latents * sigma, reference, SIGMAS, STEPS)
    assert paths[STEPS] == tuple(range(STEPS))
