"""A model of images through the jobs, as a person would take it; and what other models count."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.media import image
from cluster.models.model import find_model
from cluster.store import open_store
from jobs._shared import cli as _cli
from jobs.calibrate import __main__ as calibrate
from jobs.evaluate import __main__ as evaluate
from jobs.render import __main__ as render
from jobs.solve import __main__ as solve
from jobs.verify import __main__ as verify
from meancache import Schedule
from meancache.carrying import LEVELS_BELOW
from meancache.quality import psnr, ssim
from tests.support import saved_pipelines

STEPS, BUDGET = 8, 4
FLAGS = ["--dtype", "float32", "--height", "64", "--width", "96", "--steps", str(STEPS)]
GUIDANCE = ["--negative-prompt", "noise", "--true-cfg-scale", "2"]
PROMPTS = ["a red circle on a dark background", "a blue square on a light background"]
HELD_OUT = ["a red square", "a blue circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("flux-jobs")


@pytest.fixture(scope="module")
def model(folder) -> list[str]:
    """The flags of a small FLUX.1, run under guidance in two forwards."""
    saved_pipelines.save("FLUX.1", folder / "model")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    (folder / "held-out.txt").write_text("\n".join(HELD_OUT))
    return ["--model", str(folder / "model"), *FLAGS, *GUIDANCE]


@pytest.fixture(scope="module")
def schedule(folder, model, shared_cluster) -> Path:
    """Calibrated and fitted on two prompts."""
    root, prompts = ["--output", str(folder / "out")], ["--prompts", str(folder / "prompts.txt")]
    assert calibrate.main([*model, *prompts, *root, "--seeds", "1", "--gangs", "1"]) == 0
    graph = ["--graph", str(folder / "out" / "graph"), "--budgets", str(BUDGET)]
    assert solve.main([*graph, "--output", str(folder / "schedules")]) == 0
    return folder / "schedules" / f"fitted-b{BUDGET}.json"


@pytest.fixture(scope="module")
def rendered(folder, model, schedule) -> Path:
    """The held-out prompts, by the schedule, as pictures."""
    prompts = ["--prompts", str(folder / "held-out.txt"), "--output", str(folder / "pictures")]
    assert render.main([*model, *prompts, "--schedule", str(schedule), "--gangs", "1"]) == 0
    return folder / "pictures"


@pytest.mark.slow
def test_a_schedule_is_fitted_under_guidance_in_two_forwards(schedule):
    made = Schedule.load(schedule)
    assert (made.nfe, made.model["pipeline"]) == (BUDGET, "FluxPipeline")
    conditions = {"true_cfg_scale": 2.0, "negative_prompt": "noise", "height": 64}
    assert conditions.items() <= made.conditions.items()
    assert "num_frames" not in made.conditions
    assert made.predicted_psnr is not None


@pytest.mark.slow
def test_pictures_are_rows_of_one_frame_and_lossless_files(rendered):
    rows = pq.read_table(rendered / "manifest" / "parts").to_pylist()
    assert [row["prompt"] for row in rows] == HELD_OUT
    for row in rows:
        assert (row["num_frames"], row["fps"], row["nfe"]) == (1, 0.0, 2 * BUDGET)
        assert (
            row["key"] == f"videos/{row['item_id'][:2]}/{row['item_id']}.{row['sha256'][:16]}.png"
        )
        picture = image.decode((rendered / row["key"]).read_bytes())
        assert picture.shape == (1, row["height"], row["width"], 3) == (1, 64, 96, 3)


@pytest.mark.slow
def test_a_picture_is_measured_as_a_video_of_one_frame(rendered):
    files = sorted(rendered.rglob("*.png"))
    one, other = (image.decode(file.read_bytes()) for file in files)
    assert psnr(one, one) == np.inf
    assert 0 < psnr(one, other) < 60
    assert ssim(one, other) < ssim(one, one) == 1


@pytest.mark.slow
def test_rendering_again_renders_nothing(folder, model, schedule, rendered, capsys):
    prompts = ["--prompts", str(folder / "held-out.txt"), "--output", str(rendered)]
    assert render.main([*model, *prompts, "--schedule", str(schedule)]) == 0
    assert "0 videos to do (0 forwards), 2 already done" in capsys.readouterr().out


@pytest.mark.slow
def test_verify_finds_pictures_whole_damaged_and_left_over(rendered, capsys):
    assert verify.main([str(rendered)]) == 0
    store, picture = open_store(str(rendered)), next(rendered.rglob("*.png"))
    left = picture.relative_to(rendered).as_posix().rpartition(".")[0].rpartition(".")[0]
    store.put_new(f"{left}.{'0' * 16}.png", b"of an attempt that was killed")
    assert verify.main([str(rendered), "--gc", "--grace", "-1"]) == 0
    assert "1 videos that nothing names removed" in capsys.readouterr().out
    whole = picture.read_bytes()
    picture.write_bytes(whole[:-1])
    try:
        assert verify.main([str(rendered)]) == 1
        assert "do not have the sha256" in capsys.readouterr().out
    finally:
        picture.write_bytes(whole)


@pytest.mark.slow
def test_an_evaluation_compares_pictures_and_counts_both_forwards(folder, model, schedule, capsys):
    out = folder / "evaluation"
    command = [*model, "--prompts", str(folder / "held-out.txt"), "--output", str(out)]
    command += ["--schedules", str(schedule.parent), "--graph", str(folder / "out" / "graph")]
    assert evaluate.main([*command, "--gangs", "1"]) == 0
    rows = pq.read_table(out / "evaluation.parquet").to_pylist()
    fitted = [row for row in rows if row["method"] == "fitted"]
    full = [row for row in rows if row["method"] == "full"]
    assert len(fitted) == len(full) == len(HELD_OUT)
    assert {(row["nfe"], row["share"]) for row in fitted} == {(2 * BUDGET, BUDGET / STEPS)}
    assert {row["nfe"] for row in full} == {2 * STEPS}
    assert all(row["psnr"] > 10 for row in fitted)
    assert "</html>" in (out / "report.html").read_text()
    assert "fitted" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_the_guidance_of_its_schedule_is_refused(folder, model, schedule, capsys):
    bare = [flag for flag in model if flag not in GUIDANCE]
    prompts = ["--prompts", str(folder / "held-out.txt"), "--output", str(folder / "none")]
    assert render.main([*bare, *prompts, "--schedule", str(schedule)]) == _cli.EXIT_REFUSED
    assert "true_cfg_scale 2.0, but this job has None" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "more", "calls"),
    [
        ("FLUX.1", [], 1),
        ("FLUX.1", GUIDANCE, 2),
        ("Wan 2.1", ["--num-frames", "9"], 2),
        ("Wan 2.1", ["--num-frames", "9", "--guidance-scale", "1"], 1),
    ],
)
def test_a_dry_run_counts_the_forwards_of_guidance(tmp_path, capsys, name, more, calls):
    saved_pipelines.save(name, tmp_path / "m")
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    flags = ["--model", str(tmp_path / "m"), *FLAGS, *more, "--prompts", str(tmp_path / "p.txt")]
    flags += ["--output", str(tmp_path / "out"), "--dry-run"]
    assert render.main(flags) == calibrate.main([*flags, "--seeds", "1"]) == 0
    forwards = len(PROMPTS) * STEPS * calls
    said = capsys.readouterr().out
    assert f"2 videos to do ({forwards} forwards)" in said
    recorded = len(PROMPTS) * (STEPS + LEVELS_BELOW) * calls
    assert f"2 trajectories to run ({recorded} forwards)" in said
    here = find_model(str(tmp_path / "m"), dtype="float32")
    arguments = {**here.defaults, "height": 64, "width": 96, "num_inference_steps": STEPS}
    sigmas = here.grid(STEPS, arguments).sigmas
    halves = [{"start": 0, "stop": 4, "span": 1}, {"start": 4, "stop": STEPS, "span": 1}]
    (tmp_path / "schedules").mkdir()
    Schedule.from_edges(sigmas, halves).save(tmp_path / "schedules" / "s.json")
    assert evaluate.main([*flags, "--schedules", str(tmp_path / "schedules")]) == 0
    assert f"{len(PROMPTS) * (STEPS + 2) * calls} forwards" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--num-frames", "9"], "is a FluxPipeline, which takes no num_frames"),
        (["--gang-size", "5"], "gang size 5 does not divide the "),
        (["--height", "50"], "height 50 must be a multiple of 16"),
    ],
)
def test_what_a_model_of_images_cannot_do_is_refused(
    tmp_path, folder, model, capsys, more, sentence
):
    (tmp_path / "p.txt").write_text("a red circle")
    command = [*model, "--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "o"), *more]
    for main in (render.main, calibrate.main):
        assert main(command) == _cli.EXIT_REFUSED
        assert sentence in capsys.readouterr().err


def test_baselines_are_refused_for_other_pipelines(tmp_path, folder, model, capsys):
    (tmp_path / "p.txt").write_text("a red circle")
    (tmp_path / "s").mkdir()
    edges = [{"start": 0, "stop": STEPS, "span": 1}]
    here = find_model(str(folder / "model"))
    arguments = {**here.defaults, "height": 64, "width": 96}
    Schedule.from_edges(here.grid(STEPS, arguments).sigmas, edges).save(tmp_path / "s" / "x.json")
    command = [*model, "--prompts", str(tmp_path / "p.txt"), "--output", str(tmp_path / "o")]
    command += ["--schedules", str(tmp_path / "s"), "--baselines"]
    assert evaluate.main(command) == _cli.EXIT_REFUSED
    assert "--baselines are set up for a HunyuanVideoPipeline" in capsys.readouterr().err
