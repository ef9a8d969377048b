"""Calibrations are compared by the schedules that they give for the very call."""

import dataclasses

import pytest

from cluster.work.prompts import PromptsError
from jobs.evaluate.workflow import prepare
from meancache.errors import CalibrationError, ScheduleError
from tests.jobs.conftest import CALIBRATED
from tests.support.configs import configured


@pytest.fixture
def command(tmp_path, prompts, graph) -> list[str]:
    folder = tmp_path / "calibrations"
    folder.mkdir()
    graph.save(folder / "two.parquet")
    one = dict(list(graph.trajectories.items())[:1])
    dataclasses.replace(graph, trajectories=one).save(folder / "one.parquet")
    what = ["--model", "tiny", "--prompts", prompts, "--calibrations", str(folder)]
    return [*what, "--budgets", "4,6", "--output", str(tmp_path / "out")]


def test_each_gives_a_schedule_of_each_budget_for_the_setting_of_the_call(command, model):
    compared = prepare(configured("evaluate", [*command, "--steps", "20", "--height", "96"]))
    assert [one.setting for one in compared.methods] == ["one-b4", "one-b6", "two-b4", "two-b6"]
    arguments = {**model.defaults, "height": 96, "num_inference_steps": 20}
    for one in compared.methods:
        model.check_schedule(one.schedule, arguments)
        assert one.schedule.calibration["carried"]["height"] == {"from": 64, "to": 96}


def test_prompts_that_were_calibrated_on_are_refused(command, tmp_path):
    (tmp_path / "known.txt").write_text(CALIBRATED)
    with pytest.raises(PromptsError, match="calibrated on"):
        prepare(configured("evaluate", [*command, "--prompts", str(tmp_path / "known.txt")]))


def test_strict_and_an_empty_folder_are_refused(command, tmp_path):
    with pytest.raises(CalibrationError, match="strict allows"):
        prepare(configured("evaluate", [*command, "--height", "96", "--strict"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match="there is no calibration"):
        prepare(configured("evaluate", [*command, "--calibrations", str(tmp_path / "empty")]))


def test_nothing_to_compare_is_refused(command):
    without = [*command[:4], *command[6:]]
    with pytest.raises(ScheduleError, match="there is nothing to compare"):
        prepare(configured("evaluate", without))
