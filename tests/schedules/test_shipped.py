"""What ships under schedules/ loads, fits the model it is named after, and keeps its budget."""

from pathlib import Path

import pytest

from cluster.models.model import find_model
from meancache import Schedule

SHIPPED = sorted((Path(__file__).parents[2] / "schedules").glob("*/*.json"))


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
