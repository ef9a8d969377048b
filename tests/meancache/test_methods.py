"""From a graph to schedules, by the methods' names."""

import numpy as np
import pytest

from meancache.calibration import Calibration, trajectory_statistics
from meancache.grid import Grid
from meancache.methods import candidate_paths, paper_schedules, secant_schedules
from meancache.solver import path_cost
from meancache.velocity import velocities_in_use

BUDGETS = [3, 5, 12]


@pytest.fixture
def graph(torch_velocities) -> Calibration:
    """Three smooth random trajectories of 12 steps, under some model's name."""
    grid = Grid.from_sigmas(np.linspace(1, 0, 13).tolist())
    return Calibration(grid, {"id": "m"}, {"height": 64}).add(
        [trajectory_statistics(torch_velocities(seed), grid, "p", seed) for seed in range(3)]
    )


@pytest.mark.parametrize("method", ["paper", "secant"])
def test_a_graphs_schedules_carry_where_they_come_from(graph, method):
    solved = (
        secant_schedules(graph, BUDGETS)
        if method == "secant"
        else paper_schedules(graph, BUDGETS, 3.0, "jump")
    )
    assert list(solved) == BUDGETS
    for budget, schedule in solved.items():
        assert schedule.nfe <= budget == schedule.budget
        assert (schedule.method, schedule.model) == (method, {"id": "m"})
        assert schedule.conditions == {"height": 64}
        assert schedule.calibration == {"graph": graph.id, "trajectories": 3}


def test_the_papers_cost_is_that_of_its_path(graph):
    for schedule in paper_schedules(graph, BUDGETS, 3.0, "jump").values():
        path = [(edge.start, edge.stop, edge.span) for edge in schedule.edges]
        assert schedule.predicted_cost == path_cost(graph.costs(), path, 3.0)


def test_all_steps_of_a_secant_schedule_are_the_run_itself(graph):
    schedule = secant_schedules(graph, [12])[12]
    assert np.allclose(velocities_in_use(schedule), np.eye(12))
    assert schedule.predicted_cost == pytest.approx(0.0, abs=1e-12)


def test_candidates_are_paths_within_their_budget_each_once(graph):
    candidates = candidate_paths(graph, BUDGETS)
    for budget, paths in candidates.items():
        assert len(set(paths)) == len(paths) >= 1
        for steps in paths:
            assert steps[0] == 0
            assert list(steps) == sorted(set(steps))
            assert len(steps) <= budget
    assert candidates[12][0] == tuple(range(12))
