"""What a gang is asked for each budget, and what it answers; here it is one rank, in process."""

import numpy as np
import pytest

from cluster.ranks.renderer import Renderer
from jobs.solve.fitting import (
    LIMIT_VIDEOS,
    Fitting,
    fit_budget,
    fitted_schedule,
    prepare_fitting,
    requests,
)
from meancache.fitting import Fitter
from meancache.methods import candidate_paths, paper_schedules
from meancache.search import rollout_forwards
from tests.jobs.conftest import PROMPTS
from tests.support.calibrations import recorded

STEPS, BUDGET = 12, 4


@pytest.fixture(scope="module")
def calibration(model):
    """Of three real trajectories."""
    return recorded(model, STEPS, PROMPTS)


@pytest.fixture(scope="module")
def renderer(model) -> Renderer:
    return Renderer(model, 0, 1, "")


def test_a_fit_predicts_by_runs_whose_prompts_it_has_not_seen(calibration, model, renderer):
    fitting = prepare_fitting(calibration, model, [BUDGET], 3)
    (request,) = requests(fitting)
    answer = fit_budget(renderer, request)
    assert answer.forwards <= LIMIT_VIDEOS * STEPS * 3
    assert answer.searched is None
    schedule = fitted_schedule(fitting, answer)
    low, high = schedule.predicted_interval
    assert low < schedule.predicted_psnr < high
    assert schedule.predicted_psnr == pytest.approx(np.mean(answer.psnr))
    # On the runs that it was fitted on, it comes closer than it promises.
    runs = renderer.runs(request.trajectories, request.arguments)
    seen = Fitter(renderer.pipeline, request.grid, runs).fidelity(schedule)
    assert np.mean(seen) > schedule.predicted_psnr


def fitting(graph, trajectories: int) -> Fitting:
    """A fitting of five budgets on so many trajectories of a 50-step model."""
    budgets = [6, 8, 10, 12, 15]
    return Fitting(
        graph=graph,
        arguments={},
        trajectories=[(f"prompt {number}", number) for number in range(trajectories)],
        candidates=candidate_paths(graph, budgets),
        baselines=paper_schedules(graph, budgets, 3.0, "jump"),
        fine_grid=None,
    )


@pytest.mark.parametrize("trajectories", [1, 3, 10, 40])
def test_all_that_is_asked_of_the_gangs_keeps_the_limit_of_forwards(graph, trajectories):
    asked = requests(fitting(graph, trajectories))
    assert [request.baseline.budget for request in asked] == [15, 12, 10, 8, 6]
    count = len(asked[0].trajectories)
    forwards = count * 50
    for request in asked:
        # The run left out of the fit shares its first step with it; a single one has none.
        left_out = request.baseline.budget - 1 if count > 1 else 0
        forwards += count * (request.baseline.budget + left_out)
        forwards += request.tried * (request.baseline.budget + rollout_forwards(request.candidates))
    assert forwards <= LIMIT_VIDEOS * 50 * trajectories
    assert asked[0].tried >= (trajectories >= 10)
