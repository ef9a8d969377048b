"""The demo, as the README has it, and the commands that the README lets follow it."""

import io
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.media import video
from cluster.models.model import find_model
from cluster.store import open_store
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs.demo.comparison import Pair
from jobs.demo.page import demo_page
from jobs.demo.workflow import steps
from jobs.render.schedules import SHIPPED
from meancache import Schedule
from meancache.calibration import Calibration
from meancache.tiny.captions import HELD_OUT
from tests.support.browser import needs_browser, views
from tests.support.commands import run, simple_commands
from tests.support.configs import configured
from tests.support.pages import readme

pytestmark = [
    pytest.mark.usefixtures("shared_cluster"),
    pytest.mark.timeout(1000),  # two cores may be at work on something else meanwhile
]


def demo_arguments() -> list[str]:
    """Those of `python -m jobs.demo` in the README's first command."""
    (words,) = (
        words
        for command in readme("checkout")
        for words in simple_commands(command)
        if words[1:3] == ["-m", "jobs.demo"]
    )
    return words[3:]


def test_the_commands_that_it_prints_do_what_it_does():
    for step in steps("s3://bucket/a root", gang_size=2):
        (words,) = simple_commands(step.command)
        assert words[:3] == ["python", "-m", f"jobs.{step.job}"]
        assert configured(step.job, words[3:]) == step.config


def test_the_page_names_every_row_and_leads_to_its_video_and_to_the_other_pages(tmp_path):
    model = find_model("tiny")
    prompts = [
        Prompt(line, caption.text, f"id-{line}") for line, caption in enumerate(HELD_OUT[:2])
    ]
    items = plan_items(prompts, model, model.defaults)
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64, 3), np.uint8)
    pairs = [Pair(item, frames, frames, 100.0, 1.0, 2.0, 0.5, 10) for item in items]
    schedule = Schedule.load(SHIPPED / "tiny" / "fitted-b10.json")
    keys = {item.id: f"videos/{item.id}.mp4" for item in items}
    page = demo_page("a root", pairs, keys, {10: schedule}, 10)
    for item in items:
        assert f"<small>{item.prompt_id}</small>{item.prompt}" in page
        assert f'href="videos/{item.id}.mp4"' in page
    for link in ("render.html", "first/report.html"):
        assert f'href="{link}"' in page
    assert "of which 2 are too few to rest on" in " ".join(page.split())
    assert "± nan" not in demo_page("a root", pairs[:1], keys, {10: schedule}, 10)


@pytest.fixture(scope="module")
def demo(run_job, tmp_path_factory) -> Path:
    """What the README's command leaves in an empty directory."""
    folder = tmp_path_factory.mktemp("empty")
    program = run_job("demo", *demo_arguments(), cwd=folder, timeout=900)
    assert program.returncode == 0, program.stderr
    assert program.stdout.splitlines()[-1] == str(folder / "out" / "report.html")
    said = program.stdout.replace(f"{folder}/", "")
    for command in readme("checkout"):
        if command.startswith("python -m jobs."):
            assert f"$ {command}\n" in said
    return folder / "out"


def check(root: str) -> None:
    """What the demo promises to leave, in any store."""
    store = open_store(root)
    graph = Calibration.from_parquet(store.get("graph/statistics.parquet"))
    assert len(graph.trajectories) >= 10
    for budget in (8, 10, 12, 15):
        for method in ("fitted", "paper"):
            schedule = Schedule.loads(store.get(f"schedules/{method}-b{budget}.json"))
            assert schedule.method == method
            assert schedule.nfe <= budget
            assert schedule.num_inference_steps == 50
    rows = pq.read_table(io.BytesIO(store.get("manifest/parts/part-000000.parquet"))).to_pylist()
    assert len(rows) >= 8
    for row in rows:
        assert (row["status"], row["nfe"], row["world_size"]) == ("ok", 10, 2)
        assert video.decode(store.get(row["key"])).shape == (9, 64, 64, 3)
    calibrated = set(store.get("prompts/calibration.txt").splitlines())
    assert not calibrated & {row["prompt"].encode() for row in rows}
    page = store.get("report.html").decode()
    for strip in ("frames of the full run", "frames of the accelerated run"):
        assert page.count(strip) == len(rows)
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_the_demo_leaves_the_whole_story_in_a_folder(demo):
    check(str(demo))


@pytest.mark.slow
@pytest.mark.usefixtures("bucket")
def test_the_commands_that_follow_it_in_the_readme_run_one_after_the_other(demo):
    assert len(readme("")) >= 6
    for command in readme(""):
        run(command, demo.parent)


@pytest.mark.slow
def test_the_demo_leaves_the_whole_story_in_a_bucket(run_job, s3_root):
    program = run_job("demo", "--output", s3_root)
    assert program.returncode == 0, program.stderr
    assert program.stdout.splitlines()[-1] == f"{s3_root}/report.html"
    check(s3_root)
    assert "not-a-secret" not in program.stdout + program.stderr


def test_verify_finds_a_changed_byte_and_a_missing_video(demo, run_job, tmp_path):
    root = tmp_path / "copy"
    shutil.copytree(demo, root)
    first, second = sorted((root / "videos").rglob("*.mp4"))[:2]
    assert run_job("verify", str(root)).returncode == 0
    data = bytearray(first.read_bytes())
    data[len(data) // 2] ^= 1
    first.write_bytes(data)
    second.unlink()
    program = run_job("verify", str(root))
    assert program.returncode == 1
    assert f"{first} is damaged" in program.stdout
    assert f"{second} is missing" in program.stdout


@needs_browser
def test_the_report_shows_everything_in_a_real_browser(demo):
    for page in views((demo / "report.html").as_uri()):
        assert page.locator("h1").inner_text() == "10 forward passes give the video of 50"
        assert page.locator(".cells").count() == 4
        assert page.locator(".cells").nth(1).locator("i.on").count() == 10
        images = page.locator("img")
        assert images.count() == 5 * 8
        assert images.evaluate_all("all => all.every(one => one.complete && one.naturalWidth)")
