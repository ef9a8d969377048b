"""Rows of any steps and sizes in one render: a schedule for each setting, from one calibration."""

import dataclasses
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.work.schedule_table import schedule_of
from jobs.render import __main__ as render
from jobs.render.workflow import prepare
from jobs.replay import __main__ as replay
from jobs.verify import __main__ as verify
from meancache.errors import CalibrationError, ScheduleError
from meancache.schedule import Schedule
from tests.jobs.conftest import PROMPTS
from tests.support.configs import configured

SETTINGS = [
    {"num_inference_steps": steps, "height": size, "width": size}
    for size in (64, 96)
    for steps in (4, 5, 6)
]


@pytest.fixture(scope="module")
def calibration_file(tmp_path_factory, graph) -> str:
    path = tmp_path_factory.mktemp("calibrated") / "calibration.parquet"
    graph.save(path)
    return str(path)


@pytest.fixture(scope="module")
def command(tmp_path_factory, calibration_file) -> list[str]:
    """A render of twelve rows in six settings, two of each."""
    folder = tmp_path_factory.mktemp("settings")
    rows = [
        {"prompt": PROMPTS[number % 3], "prompt_id": f"p{number}", **SETTINGS[number % 6]}
        for number in range(12)
    ]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    what = ["--model", "tiny", "--prompts", str(folder / "prompts.jsonl")]
    solved = ["--calibration", calibration_file, "--budget", "3"]
    return [*what, *solved, "--gangs", "1", "--output", str(folder / "out")]


def prepared(command: list[str]):
    return prepare(configured("render", command))


def test_every_setting_has_a_schedule_for_the_very_run(command, model, graph):
    job = prepared(command)
    found = {}
    for item in job.items:
        schedule = schedule_of(job.schedule, item.arguments)
        grid = model.grid(item.arguments["num_inference_steps"], item.arguments)
        assert schedule.grid == grid
        assert schedule.nfe == 3
        assert schedule.edges == graph.schedule(grid, 3).edges
        assert schedule.conditions["height"] == item.arguments["height"]
        found[schedule.id] = schedule
    assert len(found) == 6
    assert {one["id"] for one in job.spec["schedules"]} == set(found)
    assert job.spec["schedule"] is None
    carried = [one.calibration["carried"] for one in found.values()]
    assert all("grid" in one for one in carried)
    assert sum("height" in one for one in carried) == 3


def test_a_dry_run_lists_the_settings_and_their_schedules(command, capsys):
    assert render.main([*command, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "6 settings:" in said
    assert "4 steps, 64x64x9, guidance scale 6: 2 videos, 3 forwards, schedule " in said
    assert "carried from height 64 -> 96, width 64 -> 96" in said


def test_more_forwards_than_a_run_has_steps_are_all_of_its_steps(command):
    (*_, output) = command
    job = prepared([*command[:-2], "--budget", "5", "--output", output])
    nfes = {
        item.arguments["num_inference_steps"]: schedule_of(job.schedule, item.arguments).nfe
        for item in job.items
    }
    assert nfes == {4: 4, 5: 5, 6: 5}


def test_strict_refuses_another_size(command):
    with pytest.raises(CalibrationError, match="made for height 64, the run has height 96"):
        prepared([*command, "--strict"])


def test_a_grid_out_of_reach_is_refused_before_anything_runs(command, prompts):
    low = [*command, "--prompts", prompts, "--steps", "200"]
    with pytest.raises(CalibrationError, match=r"lies below .* calibrate with 200 steps or more"):
        prepared(low)


def test_another_revision_is_refused_unless_it_is_asked_for(command, graph, tmp_path):
    other = dataclasses.replace(graph, model={**graph.model, "revision": "0" * 40})
    other.save(tmp_path / "other.parquet")
    changed = [*command, "--calibration", str(tmp_path / "other.parquet")]
    with pytest.raises(CalibrationError, match=r"of revision '0000.*allow any"):
        prepared(changed)
    assert prepared([*changed, "--any-revision"]).schedule is not None
    stranger = dataclasses.replace(graph, model={**graph.model, "pipeline": "FluxPipeline"})
    stranger.save(tmp_path / "other.parquet")
    with pytest.raises(CalibrationError, match="the model that it was made on alone"):
        prepared([*changed, "--any-revision"])


def test_a_calibration_needs_a_budget_or_a_target(command):
    without = [one for one in command if one not in ("--budget", "3")]
    with pytest.raises(ScheduleError, match="--calibration needs --budget"):
        prepared(without)
    (schedule, *_) = prepared([*without, "--target-psnr", "15"]).schedule.schedules.values()
    assert schedule.estimated_psnr is None or schedule.estimated_psnr >= 15


def test_the_embedded_models_own_calibration_serves_any_steps_and_size(tmp_path, prompts):
    what = ["--model", "tiny", "--prompts", prompts, "--output", str(tmp_path / "out")]
    job = prepared([*what, "--budget", "7", "--steps", "30", "--height", "96", "--width", "96"])
    (schedule,) = job.schedule.schedules.values()
    assert (schedule.nfe, schedule.num_inference_steps) == (7, 30)
    assert schedule.calibration["weights"] == "off-policy"
    plain = prepared([*what, "--budget", "10"])
    assert isinstance(plain.schedule, Schedule)  # the one that was fitted on this very setting
    assert "schedules" not in plain.spec


@pytest.mark.usefixtures("shared_cluster")
def test_a_job_of_several_settings_is_rendered_once_and_resumed_and_known(command, capsys):
    root = Path(command[-1])
    assert render.main(command) == 0
    spec = json.loads((root / "job.json").read_text())
    schedules = {one["id"]: Schedule.from_json(one) for one in spec["schedules"]}
    part = root / "manifest" / "parts" / "part-000000.parquet"
    rows = pq.read_table(part).to_pylist()
    assert [row["index"] for row in rows] == list(range(12))
    for row, setting in zip(rows, SETTINGS * 2, strict=True):
        schedule = schedules[row["schedule_id"]]
        assert (row["status"], row["nfe"]) == ("ok", 3)
        assert row["num_inference_steps"] == schedule.num_inference_steps
        assert row["height"] == schedule.conditions["height"] == setting["height"]
    page = (root / "report.html").read_text()
    assert all(identity[:16] in page for identity in schedules)
    # As a driver leaves it that was killed before the last receipts.
    for path in [part, root / "manifest" / "_SUCCESS"]:
        path.unlink()
    for receipt in sorted((root / "receipts").rglob("*.json"))[:3]:
        receipt.unlink()
    capsys.readouterr()
    assert render.main(command) == 0
    assert "render: 3 videos to do (9 forwards), 9 already done" in capsys.readouterr().out
    again = pq.read_table(part).to_pylist()
    same = ("item_id", "schedule_id", "sha256", "nfe")
    assert [[r[n] for n in same] for r in again] == [[r[n] for n in same] for r in rows]
    assert verify.main([str(root)]) == 0
    assert replay.main([str(root), rows[-1]["item_id"]]) == 0
