"""The search of the steps, on a real rank of the embedded model."""

import re
from dataclasses import replace

import pytest

from cluster.ranks.renderer import Renderer
from jobs._shared.predictions import prediction
from jobs.refresh.__main__ import parser as refresh_parser
from jobs.solve import searching
from jobs.solve.fitting import (
    FitAnswer,
    fit_budget,
    fitted_schedule,
    prepare_fitting,
    requests,
)
from jobs.solve.searching import Searched, Split, split
from jobs.solve.workflow import TRAJECTORIES, candidate_forwards
from meancache.errors import SolverError
from meancache.schedule import Edge
from meancache.search import Found
from tests.jobs.conftest import PROMPTS
from tests.support.calibrations import recorded

STEPS, BUDGET = 12, 4
FOUND = Found((0, 3), (0, 2), 30.0, 29.0, tried=9, forwards=400)


@pytest.fixture(scope="module")
def calibration(model):
    """Of three real trajectories."""
    return recorded(model, STEPS, PROMPTS)


@pytest.fixture(scope="module")
def renderer(model) -> Renderer:
    return Renderer(model, 0, 1, "")


def test_a_search_keeps_to_its_videos_and_says_what_it_gained(calibration, model, renderer):
    fitting = prepare_fitting(calibration, model, [BUDGET], 3, search=8)
    (request,) = requests(fitting)
    answer = fit_budget(renderer, request)
    found = answer.searched.found
    assert found.forwards <= 8 * STEPS
    assert found.tried > len(request.candidates)
    assert found.score >= found.first_score
    schedule = fitted_schedule(fitting, answer)
    assert schedule.computed_steps == found.steps
    assert len(answer.searched.after) == 1  # one of the three had no part in it
    assert re.fullmatch(
        r"search at B = 4: \d+ paths tried in [0-8] full videos; on 1 calibration run that had no "
        r"part in it PSNR changed by [+-][\d.]+ dB, the worst from [\d.]+ to [\d.]+",
        answer.searched.sentence(BUDGET, STEPS),
    )


def test_the_gain_is_said_with_its_standard_error():
    said = Searched(FOUND, (30.0, 40.0), (32.0, 41.0)).sentence(10, 50)
    assert "9 paths tried in 8 full videos; on 2 calibration runs that had no part" in said
    assert "changed by +1.5 ± 0.5 dB, the worst from 30.0 to 32.0" in said
    assert Searched(FOUND, (), ()).sentence(10, 50).endswith("left to measure the gain on")


def test_a_search_with_a_single_trajectory_is_refused_before_a_rank_starts(calibration, model):
    with pytest.raises(SolverError, match="judges by others, and there is 1: calibrate more"):
        prepare_fitting(calibration, model, [BUDGET], 1, search=8)


def test_a_prompt_is_fitted_on_or_judged_by_or_measured_on():
    assert split([(f"prompt {number}", 0) for number in range(40)]) == Split(20, 32)
    assert split([("a", 0), ("a", 1), ("b", 0)]) == Split(2, 3)
    assert split([("a", 0), ("b", 0), ("b", 1), ("b", 2)]) == Split(1, 4)
    assert split([("a", 0), ("b", 0), ("c", 1)]) == Split(1, 2)
    assert split([("a", seed) for seed in range(8)]) == Split(4, 6)
    assert split([("a", 0), ("a", 1)]) == Split(1, 2)


def test_after_a_search_runs_that_had_no_part_in_it_predict(calibration, model):
    fitting = prepare_fitting(calibration, model, [BUDGET], 3)
    edges = (Edge(0, STEPS, weights={0: 1.0}),)
    answer = FitAnswer(BUDGET, edges, psnr=(90.0, 30.0, 34.0), baseline_psnr=(), forwards=1)
    assert fitted_schedule(fitting, answer).predicted_psnr == pytest.approx(154 / 3)
    schedule = fitted_schedule(fitting, replace(answer, unseen=1))
    assert schedule.predicted_psnr == pytest.approx(32)
    assert schedule.predicted_interval[0] < 32 < schedule.predicted_interval[1]
    assert "32.0 dB" in prediction(schedule)
    assert prediction(schedule).endswith("by 2 calibration runs")
    many = [(f"prompt {number}", 0) for number in range(40)]
    assert split(many).unseen(many) == 32
    assert Split(1, 2).unseen(many[:3]) == 0  # one prompt alone has no spread


def test_a_refresh_searches_where_there_are_enough_trajectories():
    plain = candidate_forwards(searching.WORTH_IT - 1, 50, budgets=2, search=None)
    assert plain == 4 * 50 * TRAJECTORIES
    unasked = candidate_forwards(searching.WORTH_IT, 50, budgets=2, search=None)
    assert unasked == 4 * 50 * searching.WORTH_IT + 2 * 50 * searching.VIDEOS
    assert candidate_forwards(searching.WORTH_IT, 50, budgets=2, search=0) == plain
    asked = candidate_forwards(4, 50, budgets=1, search=7)
    assert asked == 4 * 50 * 4 + 50 * 7
    words = " ".join(refresh_parser().format_help().split())
    assert f"default: {searching.VIDEOS} where the dates of the window have" in words
    assert f"{searching.WORTH_IT} trajectories or more" in words
