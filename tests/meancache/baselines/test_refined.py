"""Refinement by gradient, on a linear field."""

import itertools

import pytest
import torch

from meancache import Schedule
from meancache.baselines.refined import refine, rollout_error

SIGMAS = [1.0, 0.9, 0.75, 0.55, 0.3, 0.1, 0.0]
EDGES = [
    {"start": 0, "stop": 2, "weights": {0: 1.0}},
    {"start": 2, "stop": 4, "weights": {0: -0.3, 2: 1.3}},
    {"start": 4, "stop": 6, "weights": {4: 1.0}},
]


@pytest.fixture
def problem():
    """A velocity field, noise, where the full run ends, and a schedule to refine."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(6, 6, generator=generator)
    noise = torch.randn(4, 6, generator=generator)

    def field(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return latents @ matrix * (1 + sigma)

    target = noise
    for sigma, following in itertools.pairwise(SIGMAS):
        target = target + (following - sigma) * field(target, sigma)
    return field, noise, target, Schedule.from_edges(SIGMAS, EDGES)


def error(field, noise, target, schedule) -> float:
    steps = schedule.computed_steps
    weights = [
        torch.tensor([edge.weights.get(step, 0.0) for step in steps[: index + 1]])
        for index, edge in enumerate(schedule.edges)
    ]
    return float(rollout_error(field, noise, target, schedule, weights))


def test_steps_are_kept_and_the_error_falls(problem):
    start = problem[-1]
    refined = refine(*problem)
    assert refined.method == "refined"
    assert [(e.start, e.stop) for e in refined.edges] == [(e.start, e.stop) for e in start.edges]
    assert error(*problem[:-1], refined) < error(*problem) - 0.05


def test_no_number_of_iterations_ends_higher_than_it_started(problem):
    errors = [error(*problem[:-1], refine(*problem, iterations=count)) for count in range(1, 6)]
    assert max(errors) <= error(*problem) + 1e-6


def test_a_schedule_that_is_exact_already_keeps_its_weights(problem):
    field, noise, target, _ = problem
    every = [{"start": k, "stop": k + 1, "weights": {k: 1.0}} for k in range(6)]
    refined = refine(field, noise, target, Schedule.from_edges(SIGMAS, every))
    for edge in refined.edges:
        assert edge.weights[edge.start] == pytest.approx(1.0, abs=1e-3)
        assert all(abs(w) < 1e-3 for step, w in edge.weights.items() if step != edge.start)
