"""Schedules for another setting than the calibration's: no model is run and no cluster is asked."""

import pytest

from jobs.solve import __main__ as solve
from jobs.solve.carried import SAME, Setting, carry
from jobs.solve.workflow import prepare
from meancache.errors import CalibrationError, SolverError
from meancache.schedule import Schedule
from tests.support.configs import configured


@pytest.fixture
def command(tmp_path, graph) -> list[str]:
    graph.save(tmp_path / "calibration.parquet")
    what = ["--calibration", str(tmp_path / "calibration.parquet"), "--budgets", "4,6"]
    return [*what, "--output", str(tmp_path / "out")]


@pytest.mark.parametrize("method", ["fitted", "secant", "paper"])
def test_schedules_are_written_for_the_runs_that_were_named(command, tmp_path, model, method):
    size = ["--height", "96", "--width", "64", "--num-frames", "17"]
    assert solve.main([*command, "--method", method, "--steps", "30", *size]) == 0
    arguments = {**model.defaults, "height": 96, "num_frames": 17, "num_inference_steps": 30}
    for budget in (4, 6):
        schedule = Schedule.load(tmp_path / "out" / f"{method}-b{budget}.json")
        model.check_schedule(schedule, arguments)
        assert (schedule.method, schedule.nfe) == (method, budget)
        carried = schedule.calibration["carried"]
        assert carried["height"] == {"from": 64, "to": 96}
        assert carried["num_frames"] == {"from": 9, "to": 17}
        assert set(carried) == {"grid", "height", "num_frames"}


def test_a_shift_is_that_of_the_noise_levels(command, tmp_path):
    assert solve.main([*command, "--steps", "20", "--shift", "5"]) == 0
    schedule = Schedule.load(tmp_path / "out" / "fitted-b4.json")
    assert schedule.grid.sigmas[-2] == pytest.approx(5 / (20 - 1 + 5))


def test_the_calibrations_own_setting_is_fitted_on_runs_of_the_model(graph):
    assert carry(graph, SAME, False) is None
    own = Setting(steps=50, shift=7.0, height=64, guidance_scale=6.0)
    assert carry(graph, own, False) is None
    assert carry(graph, Setting(steps=40), False) is not None


def test_strict_carries_to_other_noise_levels_alone(command):
    prepare(configured("solve", [*command, "--strict", "--steps", "30"]))
    with pytest.raises(CalibrationError, match=r"guidance_scale 6\.0, the run has"):
        prepare(configured("solve", [*command, "--strict", "--guidance-scale", "3"]))


def test_options_of_a_fit_are_refused_where_nothing_is_fitted(command):
    with pytest.raises(SolverError, match="--trajectories is for the calibration's own setting"):
        prepare(configured("solve", [*command, "--steps", "30", "--trajectories", "3"]))


def test_a_target_takes_the_smallest_budget_that_is_expected_to_reach_it(command, tmp_path, capsys):
    assert solve.main([*command, "--steps", "30", "--target-psnr", "1"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["fitted-b4.json"]
    assert "dB by its calibration" in capsys.readouterr().out
