"""The table of carried calibrations, on a setting that takes seconds; and the picture."""

import pytest
from PIL import Image

from meancache.calibration import Calibration
from meancache.tiny.training import carry
from meancache.tiny.training.one_matrix import draw as draw_picture
from tests.support.commands import PROJECT


@pytest.fixture(scope="module")
def shipped() -> Calibration:
    return Calibration.load(PROJECT / carry.SHIPPED)


def test_a_cell_compares_own_carried_and_euler_on_the_same_noise(pipe, shipped, monkeypatch):
    monkeypatch.setattr(carry, "BUDGETS", (4,))
    monkeypatch.setattr(carry, "TRAJECTORIES", 2)
    setting = carry.Setting("12 steps", 5.0, {"num_inference_steps": 12})
    shift = pipe.scheduler.shift
    try:
        (cell,) = carry.measure(carry.Runs(pipe), shipped, setting, pairs=2)
    finally:
        pipe.scheduler.set_shift(shift)
    assert min(cell.own.mean, cell.carried.mean) > cell.euler.mean + 1
    assert cell.line().startswith("12 steps")
    assert "(12 steps, B = 4)" in carry.conclusion([cell])


def test_the_picture_is_drawn_without_a_model(shipped, tmp_path):
    draw_picture(shipped, tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").size[0] > 1000
