"""From a graph to schedules, by the methods' names."""

import dataclasses

import numpy as np
import pytest

from meancache.calibration import Calibration
from meancache.errors import SolverError
from meancache.grid import Grid
from meancache.methods import (
    METHODS,
    candidate_paths,
    fitted_schedules,
    paper_gamma,
    paper_schedules,
    secant_schedules,
    solve,
)
from meancache.prediction import signal_to_error
from meancache.solver import path_cost
from meancache.statistics import trajectory_statistics
from meancache.velocity import average_velocity, velocities_in_use

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


def test_fitted_weights_are_the_least_squares_fit_to_the_average_velocity(torch_velocities):
    grid = Grid.from_sigmas(np.linspace(1, 0, 13).tolist())
    velocities = torch_velocities(0).double().numpy()
    one = Calibration(grid).add([trajectory_statistics(torch_velocities(0), grid, "p", 0)])
    schedule = fitted_schedules(one, [5])[5]
    for number, edge in enumerate(schedule.edges):
        known = sorted(schedule.computed_steps[max(0, number - 1) : number + 1])
        target = average_velocity(grid.array(), edge.start, edge.stop) @ velocities
        expected = np.linalg.lstsq(velocities[known].T, target, rcond=None)[0]
        assert list(edge.weights) == known
        np.testing.assert_allclose(list(edge.weights.values()), expected, atol=1e-4)


def test_fitted_misses_less_of_its_calibration_than_secant(graph):
    for budget in (3, 5):
        fitted, secant = (solve(graph, [budget], method)[budget] for method in ("fitted", "secant"))
        assert signal_to_error(fitted, graph.gram()) > signal_to_error(secant, graph.gram())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_solves_by_its_name(graph, method):
    for budget, schedule in solve(graph, BUDGETS, method).items():
        assert (schedule.method, schedule.budget) == (method, budget)
        assert schedule.nfe <= budget


def test_an_unknown_method_is_refused(graph):
    with pytest.raises(SolverError, match="method 'magic' must be one of fitted, secant, paper"):
        solve(graph, [5], "magic")


@pytest.mark.parametrize(
    ("pipeline", "gamma"),
    [("HunyuanVideoPipeline", 3), ("FluxPipeline", 4), ("QwenImagePipeline", 4), ("Other", 4)],
)
def test_the_papers_gamma_is_that_of_its_table(graph, pipeline, gamma):
    assert paper_gamma(dataclasses.replace(graph, model={"pipeline": pipeline})) == gamma


def test_carried_the_paper_has_costs_in_rms_and_says_so(graph):
    here = graph.on([*np.linspace(1, 0.1, 9).tolist(), 0.0])
    for schedule in paper_schedules(here, [4], 3.0, "jump").values():
        path = [(edge.start, edge.stop, edge.span) for edge in schedule.edges]
        assert schedule.predicted_cost == path_cost(here.costs_in_rms(), path, 3.0)
        assert schedule.calibration["cost"] == "rms"
