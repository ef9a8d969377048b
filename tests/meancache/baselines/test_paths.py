"""How baselines choose their steps, against every choice there is."""

import itertools

import numpy as np
import pytest
import torch

from meancache.baselines.budcache import Reuse, anneal
from meancache.baselines.dpcache import path_costs, with_first
from meancache.baselines.forecasts import even_steps, taylor
from meancache.baselines.freecache import greedy_steps, propagation
from meancache.baselines.golden_path import with_forced
from meancache.costs import least_squares_costs
from meancache.solver import solve_pairs, solve_paper

TOTAL = 9
SIGMAS = (np.linspace(1.0, 0.0, TOTAL + 1) ** 1.3).tolist()
RNG = np.random.default_rng(0)
VELOCITIES = RNG.normal(size=(TOTAL, 40)).cumsum(axis=0)
GRAM = VELOCITIES @ VELOCITIES.T / 40


def every(budget: int):
    return [(0, *rest) for rest in itertools.combinations(range(1, TOTAL), budget - 1)]


# --- DPCache ---


def forecast_error(steps) -> float:
    """The sum over skipped steps of the error of the line, from the velocities themselves."""
    total = 0.0
    for k in range(TOTAL):
        known = [step for step in steps if step <= k]
        if k not in known:
            row = taylor(known[-2:], k)
            total += np.sqrt(np.mean((VELOCITIES[k] - row @ VELOCITIES[known[-2:]]) ** 2))
    return total


@pytest.mark.parametrize(("budget", "first"), [(1, 1), (3, 1), (5, 1), (3, 2), (5, 2), (5, 3)])
def test_dpcache_finds_the_steps_with_the_least_error_of_all(budget, first):
    steps = solve_pairs(with_first(path_costs(GRAM), first), [budget], gamma=1.0)[budget]
    allowed = [path for path in every(budget) if set(range(first)) <= set(path)]
    assert forecast_error(steps) == pytest.approx(min(map(forecast_error, allowed)))


# --- FreeCache ---


def test_freecache_deletes_the_cheapest_step_each_time():
    costs = least_squares_costs(GRAM, np.array(SIGMAS), terms=2) ** 2

    def total(steps) -> float:
        jumps = zip((0, *steps[:-1]), steps, (*steps[1:], TOTAL), strict=True)
        return sum(costs[p, t, s] for p, t, s in jumps)

    for budget in range(1, TOTAL):
        longer, shorter = greedy_steps(costs, budget + 1), greedy_steps(costs, budget)
        assert set(shorter) < set(longer)
        others = [tuple(k for k in longer if k != left) for left in longer[1:]]
        assert total(shorter) == pytest.approx(min(map(total, others)))


def test_propagation_is_the_product_of_the_steps_of_a_linear_field():
    def field(latents: torch.Tensor, sigma: float) -> torch.Tensor:
        return 3.0 * latents

    states = [torch.ones(2, 5, dtype=torch.float64)]
    for before, after in itertools.pairwise(SIGMAS):
        states.append(states[-1] + (after - before) * field(states[-1], before))
    factors = propagation(field, torch.stack(states), SIGMAS)
    for level in (1, 6, 8):  # those that are measured; others are interpolated
        carried = [1 + 3.0 * (b - a) for a, b in itertools.pairwise(SIGMAS[level:])]
        assert factors[level] == pytest.approx(np.prod(carried))
    assert factors[TOTAL] == 1.0


def test_where_nothing_is_displaced_nothing_propagates():
    constant = torch.ones(2, 3)
    states = [torch.zeros(2, 3) + (sigma - SIGMAS[0]) * constant for sigma in SIGMAS]
    factors = propagation(lambda latents, sigma: constant, torch.stack(states), SIGMAS)
    assert factors.tolist() == [1.0] * len(SIGMAS)


def test_a_run_of_one_step_has_nothing_to_propagate():
    states = torch.zeros(2, 1, 3)
    assert propagation(lambda latents, sigma: latents, states, [1.0, 0.0]).tolist() == [1.0, 1.0]


# --- BudCache ---


def curved(latents: torch.Tensor, sigma: float) -> torch.Tensor:
    return torch.exp(-2 * torch.tensor(sigma)) + 0.3 * latents


@pytest.fixture
def reference() -> torch.Tensor:
    states = [torch.randn(3, 4, generator=torch.Generator().manual_seed(0))]
    for before, after in itertools.pairwise(SIGMAS):
        states.append(states[-1] + (after - before) * curved(states[-1], before))
    return torch.stack(states)


@pytest.mark.parametrize("budget", [2, 4])
def test_budcache_finds_the_best_set_of_steps_of_all(reference, budget):
    score = Reuse(curved, reference, tuple(SIGMAS), runs=3)
    best = min(score(path) for path in every(budget))
    start = even_steps(TOTAL, budget)
    found = anneal(score, start, TOTAL, tries=300)
    assert score(found) == pytest.approx(best)
    assert anneal(score, start, TOTAL, tries=0) == start


def test_budcaches_remembered_beginnings_change_no_score(reference):
    remembering = Reuse(curved, reference, tuple(SIGMAS), runs=2)
    for path in every(4)[::5]:
        fresh = Reuse(curved, reference, tuple(SIGMAS), runs=2)
        assert remembering(path) == fresh(path)


# --- the paper's MeanCache with forced steps ---


@pytest.mark.parametrize("budget", [6, 7])
def test_forced_steps_are_computed_and_the_rest_is_the_best_of_all(budget):
    costs = np.full((2, TOTAL, TOTAL + 1), np.inf)
    for start, stop in itertools.combinations(range(TOTAL + 1), 2):
        costs[:, start, stop] = RNG.uniform(0.1, 1.0, size=2) * (stop - start)
    path = solve_paper(with_forced(costs, 5), [budget], gamma=2.0)[budget]
    assert [edge[:2] for edge in path[:5]] == [(k, k + 1) for k in range(5)]

    def cost(steps) -> float:
        jumps = itertools.pairwise((*steps, TOTAL))
        return sum(costs[:, t, s].min() ** 2 for t, s in jumps)

    allowed = [
        steps for size in range(6, budget + 1) for steps in every(size)
        if set(range(6)) <= set(steps)
    ]  # fmt: skip
    found = sum(costs[span - 1, t, s] ** 2 for t, s, span in path)
    assert found == pytest.approx(min(map(cost, allowed)))
