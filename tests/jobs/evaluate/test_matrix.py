"""What carrying costs: calibrations x settings in one table."""

import argparse
import math

import pyarrow.parquet as pq
import pytest

from jobs.evaluate import matrix
from jobs.evaluate.matrix import Cell, conclusion, page, text_matrix
from jobs.evaluate.settings import setting
from meancache.errors import CalibrationError
from meancache.quality import Summary
from tests.support.configs import configured


def cell(where: str, calibration: str, psnr: list[float], own: bool = False) -> Cell:
    return Cell(where, calibration, 8, own, len(psnr), None, Summary.of(psnr))


CELLS = [
    cell("steps 50", "fifty", [50.0, 40.0], own=True),
    cell("steps 50", "thirty", [48.0, 38.0]),
    cell("steps 30", "fifty", [44.0, 42.0]),
    cell("steps 30", "thirty", [45.0, 43.0], own=True),
]


def test_a_setting_names_what_is_other_in_one_order_and_its_folder_is_safe():
    both = setting("width=96, height=96")
    assert both == setting("height=96,width=96")
    assert (str(both), both.folder) == ("height 96, width 96", "height-96-width-96")
    assert setting("guidance-scale=3.5").changes == (("guidance_scale", 3.5),)


@pytest.mark.parametrize(
    "text", ["", "steps", "steps=x", "steps=0", "prompt=a", "steps=3,steps=4", "height=../x"]
)
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        setting(text)


def test_the_cost_of_carrying_is_the_loss_against_the_settings_own_calibration():
    assert conclusion(CELLS) == (
        "Carried is +1.5 dB below a setting's own calibration in the mean of 2, 2.0 dB at most "
        "(thirty to steps 50, B = 8)."
    )
    assert "is not known" in conclusion([CELLS[1], CELLS[2]])


def test_an_exact_own_run_tells_no_finite_loss():
    assert "is not known" in conclusion(
        [cell("a", "x", [math.inf], own=True), cell("a", "y", [9.0])]
    )


def test_the_table_marks_what_is_a_settings_own():
    first, second, third, note = text_matrix(CELLS).splitlines()
    assert first.split() == ["setting", "B", "fifty", "thirty"]
    assert second.split() == ["steps", "50", "8", "45.0", "(40.0)*", "43.0", "(38.0)"]
    assert third.split() == ["steps", "30", "8", "43.0", "(42.0)", "44.0", "(43.0)*"]
    assert "*" in note


def test_the_page_links_to_each_settings_own_evaluation():
    shown = page(CELLS, {"steps 50": "steps-50", "steps 30": "steps-30"})
    for folder in ("steps-50", "steps-30"):
        assert f'href="settings/{folder}/report.html"' in shown
    assert "python -m jobs.render --model MODEL" in shown


@pytest.fixture
def command(tmp_path, prompts, graph) -> list[str]:
    folder = tmp_path / "calibrations"
    folder.mkdir()
    graph.save(folder / "fifty.parquet")
    what = ["--model", "tiny", "--prompts", prompts, "--calibrations", str(folder)]
    return [*what, "--budgets", "4", "--output", str(tmp_path / "out"), "--settings"]


def test_all_settings_are_checked_first_and_a_dry_run_leaves_nothing(command, tmp_path, capsys):
    config = configured("evaluate", [*command, "steps=50", "steps=20,height=96", "--dry-run"])
    assert matrix.run(config).table is None
    assert "setting steps 20, height 96:" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()
    with pytest.raises(CalibrationError, match="strict allows"):
        matrix.run(configured("evaluate", [*command, "steps=50", "height=96", "--strict"]))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more",
    [["--schedules", "out"], ["--graph", "graph"], ["--baselines"]],
    ids=["schedules", "graph", "baselines"],
)
def test_what_is_right_for_one_setting_alone_is_refused(command, more):
    with pytest.raises(CalibrationError, match="--settings"):
        matrix.run(configured("evaluate", [*command, "steps=50", *more]))


@pytest.mark.slow
@pytest.mark.usefixtures("shared_cluster")
def test_two_settings_become_one_table_on_real_videos(command, tmp_path, capsys):
    config = configured("evaluate", [*command, "steps=10", "steps=6,height=32", "--gangs", "1"])
    table = matrix.run(config).table
    assert pq.read_table(tmp_path / "out" / "carrying.parquet").equals(table)
    rows = table.to_pylist()
    assert [(row["setting"], row["pairs"], row["own"]) for row in rows] == [
        ("steps 10", 3, False),
        ("steps 6, height 32", 3, False),
    ]
    assert all(5 < row["worst"] <= row["psnr"] < 100 for row in rows)
    assert (tmp_path / "out" / "settings" / "steps-10" / "report.html").exists()
    capsys.readouterr()
    assert matrix.run(config).table.equals(table)  # all pairs are there: nothing is rendered
