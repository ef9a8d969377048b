"""The dynamic program against brute force over every path of small random multigraphs."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meancache.errors import SolverError
from meancache.solver import pairs_cost, path_cost, solve_pairs, solve_paper


def random_costs(seed: int, steps: int, spans: int, missing: float) -> np.ndarray:
    """A multigraph with some edges missing, and with ties (costs are multiples of 1/8)."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 12, size=(spans, steps, steps + 1)) / 8
    costs[rng.random(costs.shape) < missing] = np.inf
    return costs


def brute_force(costs: np.ndarray, budget: int, gamma: float) -> tuple[float, int]:
    """The least sum of cost^gamma over all paths of at most `budget` edges, and their fewest."""
    steps = costs.shape[2] - 1
    cheapest = costs.min(axis=0)
    best, fewest = np.inf, 0
    for count in range(budget):
        for inner in itertools.combinations(range(1, steps), count):
            nodes = [0, *inner, steps]
            total = sum(cheapest[t, s] ** gamma for t, s in itertools.pairwise(nodes))
            if total < best:
                best, fewest = total, count + 1
    return best, fewest


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 7),
    spans=st.integers(1, 3),
    missing=st.sampled_from([0.0, 0.3, 0.7]),
    gamma=st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0]),
)
def test_every_budget_gets_the_optimum_over_all_paths(seed, steps, spans, missing, gamma):
    costs = random_costs(seed, steps, spans, missing)
    for budget in range(1, steps + 1):
        best, fewest = brute_force(costs, budget, gamma)
        if best == np.inf:
            with pytest.raises(SolverError, match="no path"):
                solve_paper(costs, [budget], gamma)
            continue
        path = solve_paper(costs, [budget], gamma)[budget]
        assert len(path) <= budget
        if gamma in (1.0, 2.0):  # sums of these costs are exact, so ties are ties
            assert len(path) == fewest
        assert [start for start, _, _ in path] == [0, *[stop for _, stop, _ in path[:-1]]]
        assert path[-1][1] == steps
        assert path_cost(costs, path, gamma) == pytest.approx(best)


def test_all_budgets_at_once_equal_each_alone():
    costs = random_costs(3, 20, 5, 0.2)
    together = solve_paper(costs, range(2, 21), 4.0)
    assert together == {b: solve_paper(costs, [b], 4.0)[b] for b in range(2, 21)}


def test_a_larger_budget_never_costs_more():
    costs = random_costs(5, 20, 5, 0.2)
    paths = solve_paper(costs, range(2, 21), 3.0)
    sums = [path_cost(costs, path, 3.0) for path in paths.values()]
    assert sums == sorted(sums, reverse=True)


def test_a_larger_gamma_trades_the_sum_for_a_lower_peak():
    costs = np.full((1, 4, 5), np.inf)
    costs[0, 0, 1], costs[0, 1, 4] = 0.1, 1.0  # one bad jump, sum 1.1
    costs[0, 0, 2], costs[0, 2, 4] = 0.6, 0.6  # two middling ones, sum 1.2
    assert solve_paper(costs, [2], 1.0)[2] == [(0, 1, 1), (1, 4, 1)]
    assert solve_paper(costs, [2], 4.0)[2] == [(0, 2, 1), (2, 4, 1)]


def test_a_square_table_with_an_unused_last_row_is_the_same_graph():
    costs = random_costs(1, 6, 3, 0.2)
    square = np.concatenate([costs, np.full((3, 1, 7), np.inf)], axis=1)
    assert solve_paper(square, [3], 2.0) == solve_paper(costs, [3], 2.0)


def test_costs_that_gamma_would_underflow_still_order_the_paths():
    costs = random_costs(2, 8, 1, 0.0) + 0.1
    assert solve_paper(costs * 1e-120, [3], 4.0) == solve_paper(costs, [3], 4.0)


@pytest.mark.parametrize(
    ("budgets", "gamma", "spoil", "sentence"),
    [
        ([0], 2.0, None, "budget 0 must be between 1 and the 5 steps"),
        ([6], 2.0, None, "budget 6 must be between 1 and the 5 steps"),
        ([2], 0.0, None, "gamma 0.0"),
        ([2], float("nan"), None, "gamma nan"),
        ([2], 2.0, -1.0, "negative"),
        ([2], 2.0, float("nan"), "NaN"),
    ],
)
def test_what_cannot_be_solved_is_refused_in_a_sentence(budgets, gamma, spoil, sentence):
    costs = random_costs(0, 5, 2, 0.0)
    if spoil is not None:
        costs[0, 1, 3] = spoil
    with pytest.raises(SolverError, match=sentence):
        solve_paper(costs, budgets, gamma)


def test_costs_of_another_shape_are_refused():
    with pytest.raises(SolverError, match="shape"):
        solve_paper(np.zeros((5, 6)), [2], 2.0)


def random_pair_costs(seed: int, steps: int, missing: float) -> np.ndarray:
    """costs[p, t, s] with ties and gaps, and rubbish where no jump can be."""
    rng = np.random.default_rng(seed)
    costs = rng.integers(0, 12, size=(steps, steps, steps + 1)) / 8
    costs[rng.random(costs.shape) < missing] = np.inf
    p, t, s = np.ogrid[:steps, :steps, : steps + 1]
    costs[~((t < s) & ((p < t) | (t == 0) & (p == 0)))] = np.nan
    return costs


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    steps=st.integers(1, 8),
    missing=st.sampled_from([0.0, 0.3, 0.7]),
    gamma=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
def test_with_history_every_budget_gets_the_optimum_over_all_choices_of_steps(
    seed, steps, missing, gamma
):
    costs = random_pair_costs(seed, steps, missing)
    best, fewest = np.inf, 0
    for budget in range(1, steps + 1):
        for inner in itertools.combinations(range(1, steps), budget - 1):
            total = pairs_cost(costs, (0, *inner), gamma)
            if total < best:
                best, fewest = total, budget
        if best == np.inf:
            with pytest.raises(SolverError, match="no path"):
                solve_pairs(costs, [budget], gamma)
            continue
        path = solve_pairs(costs, [budget], gamma)[budget]
        assert len(path) <= budget
        if gamma in (1.0, 2.0):
            assert len(path) == fewest
        assert pairs_cost(costs, path, gamma) == pytest.approx(best)


def test_history_decides_where_it_matters():
    costs = np.full((3, 3, 4), np.inf)
    costs[0, 0, 1] = costs[0, 0, 2] = 0.0
    costs[0, 1, 2], costs[0, 2, 3] = 0.0, 1.0
    costs[1, 2, 3] = 0.25  # from step 2 it is nearer to the end when step 1 was computed
    assert solve_pairs(costs, [2, 3], 1.0) == {2: (0, 2), 3: (0, 1, 2)}


@pytest.mark.parametrize("spoil", [-1.0, float("nan")])
def test_costs_with_history_that_are_no_costs_are_refused(spoil):
    costs = random_pair_costs(0, 5, 0.0)
    costs[1, 2, 3] = spoil
    with pytest.raises(SolverError, match="NaN or negative"):
        solve_pairs(costs, [2], 2.0)
    with pytest.raises(SolverError, match="shape"):
        solve_pairs(costs[:, :3], [2], 2.0)
