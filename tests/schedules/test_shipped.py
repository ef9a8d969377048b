"""What ships under schedules/ loads, fits the model it is named after, and keeps its budget."""

from pathlib import Path

import pytest

from cluster.models.model import find_model
from meancache import Calibration, Schedule

FOLDER = Path(__file__).parents[2] / "schedules"
SHIPPED = sorted(FOLDER.glob("*/*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_schedule_fits_its_model(path):
    schedule = Schedule.load(path)
    method, _, budget = path.stem.rpartition("-b")
    assert (schedule.method, schedule.budget) == (method, int(budget))
    model = find_model(path.parent.name)
    model.check_schedule(schedule, model.defaults)
    assert schedule.calibration["trajectories"] >= 10


def test_the_embedded_model_has_a_schedule_for_each_of_the_demos_budgets():
    assert {path.name for path in SHIPPED if path.parent.name == "tiny"} >= {
        f"{method}-b{budget}.json" for method in ("fitted", "paper") for budget in (8, 10, 12, 15)
    }


def test_the_embedded_models_calibration_is_of_its_weights_and_reaches_what_people_run():
    calibration = Calibration.load(FOLDER / "tiny" / "calibration.parquet")
    model = find_model("tiny")
    assert calibration.model == model.key
    assert len(calibration.trajectories) >= 10
    for steps in (10, 30, 50, 100):
        grid = model.grid(steps, model.defaults)
        assert calibration.schedule(grid, 8).nfe == 8
