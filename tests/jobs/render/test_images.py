"""Jobs whose rows bring images, as a person would run them."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.models.model import find_model
from jobs._shared import cli
from jobs.calibrate import __main__ as calibrate
from jobs.evaluate import __main__ as evaluate
from jobs.refresh import __main__ as refresh
from jobs.render import __main__ as render
from jobs.replay import __main__ as replay
from jobs.verify import __main__ as verify
from meancache import Schedule
from tests.support import saved_pipelines
from tests.support.image_pipelines import picture

STEPS = 4
FLAGS = ["--dtype", "float32", "--height", "32", "--width", "48", "--num-frames", "5"]
FLAGS += ["--steps", str(STEPS)]
BAD = ["cut.png", "gone.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small Wan 2.2 for images, and rows with good images and bad ones."""
    folder = tmp_path_factory.mktemp("images")
    saved_pipelines.save("Wan 2.2 I2V", folder / "model")
    (folder / "a.png").write_bytes(picture())
    (folder / "b.png").write_bytes(picture(60, 200, seed=1))
    (folder / "cut.png").write_bytes(picture()[:300])
    rows = [{"prompt": "a red circle", "image": name, "seed": 3} for name in ("a.png", "b.png")]
    rows += [{"prompt": "a blue square", "image": name} for name in BAD]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def command(folder) -> list[str]:
    prompts = ["--prompts", str(folder / "rows.jsonl"), "--output", str(folder / "out")]
    return ["--model", str(folder / "model"), *FLAGS, *prompts, "--gangs", "1"]


@pytest.fixture(scope="module")
def rendered(folder, command, shared_cluster) -> Path:
    """By a schedule that skips steps."""
    model = find_model(str(folder / "model"), dtype="float32")
    edges = [{"start": 0, "stop": 1, "span": 1}, {"start": 1, "stop": STEPS, "span": 1}]
    Schedule.from_edges(model.grid(STEPS).sigmas, edges).save(folder / "schedule.json")
    scheduled = [*command, "--schedule", str(folder / "schedule.json")]
    assert render.main(scheduled) == cli.EXIT_FAILED_ITEMS
    return folder / "out"


def test_rows_with_bad_images_fail_by_name_and_the_others_are_done(rendered):
    rows = pq.read_table(rendered / "manifest" / "parts").to_pylist()
    assert [row["image"] for row in rows] == ["a.png", "b.png"]
    assert len({row["sha256"] for row in rows}) == 2  # the same prompt and seed
    assert all((rendered / row["image_key"]).exists() for row in rows)
    failed = pq.read_table(rendered / "failures").to_pylist()
    assert [row["image"] for row in failed] == BAD
    for row, name in zip(failed, BAD, strict=True):
        assert f"image {name!r}" in row["error"]
        assert (row["attempts"], row["image_key"]) == (1, None)


def test_the_page_shows_what_a_video_was_drawn_from(rendered):
    page = (rendered / "report.html").read_text()
    row = pq.read_table(rendered / "manifest" / "parts").to_pylist()[0]
    assert page.count('alt="the image that it was made from"') == 2
    assert f'href="{row["image_key"]}"' in page


def test_a_finished_job_resumes_without_its_originals(folder, command, rendered, tmp_path, capsys):
    shutil.move(folder / "a.png", tmp_path / "a.png")
    try:
        again = [*command, "--schedule", str(folder / "schedule.json")]
        assert render.main(again) == cli.EXIT_FAILED_ITEMS
    finally:
        shutil.move(tmp_path / "a.png", folder / "a.png")
    said = capsys.readouterr().out
    assert "0 videos to do (0 forwards), 4 already done" in said
    assert "2 images that cannot be used" in said


def test_verify_reads_images_and_replay_draws_from_them(rendered, capsys):
    assert verify.main([str(rendered)]) == 0
    row = pq.read_table(rendered / "manifest" / "parts").to_pylist()[1]
    assert replay.main([str(rendered), row["item_id"]]) == 0
    assert "the same: " in capsys.readouterr().out
    image = rendered / row["image_key"]
    whole = image.read_bytes()
    image.write_bytes(whole[:-1])
    try:
        assert verify.main([str(rendered)]) == 1
        assert row["image_key"] in capsys.readouterr().out
        assert replay.main([str(rendered), row["item_id"]]) == cli.EXIT_REFUSED
        assert "is damaged" in capsys.readouterr().err
    finally:
        image.write_bytes(whole)


def test_a_job_calibrates_on_images_and_renders_by_it(folder, command, rendered, capsys):
    rows = [{"prompt": "a red circle", "image": name} for name in ("a.png", "b.png")]
    (folder / "good.jsonl").write_text("\n".join(map(json.dumps, rows)))
    here = [*command[:-6], "--prompts", str(folder / "good.jsonl"), "--gangs", "1"]
    calibrated = folder / "calibrated"
    flags = ["--seeds", "1", "--output", str(calibrated)]
    assert calibrate.main([*here, *flags]) == 0
    carried = ["--calibration", str(calibrated / "calibration.parquet"), "--budget", "3"]
    assert render.main([*here, *carried, "--output", str(folder / "by-it"), "--dry-run"]) == 0
    assert "2 videos to do (12 forwards)" in capsys.readouterr().out
    bad = [*command[:-4], "--gangs", "1", "--output", str(folder / "none"), "--seeds", "1"]
    assert calibrate.main(bad) == cli.EXIT_REFUSED
    assert "line 3: image 'cut.png' is damaged" in capsys.readouterr().err
    schedules = ["--schedules", str(folder), "--output", str(folder / "evaluated")]
    assert evaluate.main([*here, *schedules]) == 0
    table = pq.read_table(folder / "evaluated" / "evaluation.parquet").to_pylist()
    assert len(table) == 4  # two prompts, in full and by the schedule
    assert len({row["psnr"] for row in table}) == 3
    many = [{**row, "prompt": f"{row['prompt']} {n}"} for row in rows for n in range(3)]
    (folder / "many.jsonl").write_text("\n".join(map(json.dumps, many)))
    refreshed = ["--prompts", str(folder / "many.jsonl"), "--budgets", "2"]
    refreshed += ["--output", str(folder / "none")]
    assert refresh.main([*here, *refreshed]) == cli.EXIT_REFUSED
    assert "this job takes no images" in capsys.readouterr().err
