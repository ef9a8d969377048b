"""What is refused about a model before a weight is loaded."""

import dataclasses
import json
import shutil
import socket
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.models.model import ModelError, find_model
from meancache import Schedule, tiny


def schedule_for(here, **changes) -> Schedule:
    grid = here.grid(changes.pop("steps", 50))
    edges = [{"start": 0, "stop": grid.num_inference_steps, "span": 1}]
    data = Schedule.from_edges(grid.sigmas, edges).to_json()
    del data["id"]
    return Schedule.from_json({**data, **changes})


def test_the_embedded_model_is_a_hunyuan_video_pipeline(model):
    assert model.pipeline == "HunyuanVideoPipeline"
    assert model.num_heads == 4
    assert model.defaults["num_frames"] == 9
    assert model.dtype == "float32"


def test_a_models_grid_is_the_one_its_pipeline_runs(model, pipe_grid):
    assert model.grid(12) == pipe_grid


@pytest.fixture(scope="module")
def pipe_grid():
    from meancache.grid import Grid

    pipeline = tiny.load()
    pipeline.set_progress_bar_config(disable=True)
    pipeline("a", **{**tiny.DEFAULTS, "num_inference_steps": 12, "output_type": "latent"})
    return Grid.from_scheduler(pipeline.scheduler)


def test_a_folder_is_known_by_its_content(tmp_path, model):
    copy = tmp_path / "copy"
    shutil.copytree(tiny.WEIGHTS, copy)
    same = find_model(str(copy), dtype="float32")
    assert same.revision == model.revision
    config = copy / "transformer" / "config.json"
    config.write_text(config.read_text() + "\n")
    assert find_model(str(copy)).revision != model.revision


def test_another_models_defaults_come_from_its_pipeline(tmp_path):
    shutil.copytree(tiny.WEIGHTS, tmp_path / "m")
    other = find_model(str(tmp_path / "m"))
    assert (other.defaults["height"], other.defaults["num_frames"]) == (720, 129)
    assert (other.dtype, other.fps) == ("bfloat16", 24.0)


@pytest.mark.parametrize("name", ["huge", "../x y", "a/b/c", "/absent", ""])
def test_an_unknown_model_is_refused_with_what_is_known(name):
    with pytest.raises(ModelError, match=r"unknown model|model_index"):
        find_model(name or "nothing")


@pytest.mark.parametrize("name", ["foo--bar/baz", "foo/bar..baz", "foo/bar.git"])
def test_what_cannot_be_a_hub_id_is_refused(name):
    with pytest.raises(ModelError, match="unknown model"):
        find_model(name)


@pytest.mark.parametrize("content", ["[]", "", "{", "{}"])
def test_a_folder_with_a_broken_configuration_is_refused(tmp_path, content):
    shutil.copytree(tiny.WEIGHTS, tmp_path / "m")
    for name in ("model_index.json", "vae/config.json"):
        kept = (tmp_path / "m" / name).read_text()
        (tmp_path / "m" / name).write_text(content)
        with pytest.raises(ModelError):
            find_model(str(tmp_path / "m"))
        (tmp_path / "m" / name).write_text(kept)


def test_a_folder_given_by_a_relative_path_is_found_from_anywhere(tmp_path, monkeypatch):
    shutil.copytree(tiny.WEIGHTS, tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    model = find_model("m")
    assert (model.id, model.source) == ("m", str(tmp_path / "m"))


def test_a_hub_model_that_cannot_be_reached_is_refused(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"unknown model 'no/where' \(revision main\)"):
        find_model("no/where")


def test_a_hub_that_does_not_answer_is_asked_once_and_said_so_once(monkeypatch, capfd):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", nobody)
        started = time.monotonic()
        with pytest.raises(ModelError, match=r"neither on the Hugging Face Hub .*\(ConnectError\)"):
            find_model("no/where")
        assert time.monotonic() - started < 10
    assert capfd.readouterr() == ("", "")


def test_another_pipeline_is_refused_by_name(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    with pytest.raises(ModelError, match="is a 'CogVideoXPipeline'; supported: HunyuanVideo"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "gang_size", "sentence"),
    [
        (
            {},
            5,
            "divide the 48 tokens of 64x64x9; use 1, 2, 3, 4, 6, 8, 12, 16, or another",
        ),
        ({"height": 60}, 1, "height 60 must be a multiple of 16"),
        ({"num_frames": 10}, 1, "num_frames 10 must be 1 more than a multiple of 4"),
        ({"num_inference_steps": 0}, 1, "num_inference_steps 0 must be between 1 and 1000"),
    ],
)
def test_impossible_arguments_are_refused_with_the_rule(model, changes, gang_size, sentence):
    with pytest.raises(ModelError, match=sentence):
        model.check_arguments({**model.defaults, **changes}, gang_size)


def test_possible_arguments_pass(model):
    for gang_size in (1, 2, 3, 4, 6):
        model.check_arguments(model.defaults, gang_size)


@given(st.integers(1, 64), st.integers(1, 64))
def test_ulysses_takes_all_ranks_that_heads_can_be_dealt_to_and_a_ring_the_rest(
    model, gang_size, heads
):
    ulysses, ring = dataclasses.replace(model, num_heads=heads).degrees(gang_size)
    assert ulysses * ring == gang_size
    sizes = range(1, gang_size + 1)
    assert ulysses == max(size for size in sizes if gang_size % size == heads % size == 0)


def test_hunyuan_video_needs_no_ring_on_the_gpus_of_a_node_and_the_small_wan_does(model):
    hunyuan, wan = (dataclasses.replace(model, num_heads=heads) for heads in (24, 12))
    assert hunyuan.degrees(8) == (8, 1)
    assert wan.degrees(8) == (4, 2)


def test_a_schedule_that_leaves_its_conditions_open_fits(model):
    model.check_schedule(schedule_for(model), model.defaults)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 30}, "for a grid of 30 steps.*but tiny runs 50 steps"),
        ({"model": {"id": "other"}}, "made for id 'other', but this job has 'tiny'"),
        ({"model": {"revision": "old"}}, "made for revision 'old'"),
        ({"conditions": {"height": 128}}, "made for height 128, but this job has 64"),
        ({"conditions": {"guidance_scale": 1.0}}, "made for guidance_scale 1.0"),
        ({"conditions": {"dtype": "bfloat16"}}, "made for dtype 'bfloat16'"),
    ],
)
def test_a_schedule_for_something_else_is_refused_with_the_difference(model, changes, sentence):
    with pytest.raises(ModelError, match=sentence):
        model.check_schedule(schedule_for(model, **changes), model.defaults)


@pytest.mark.parametrize(
    ("file", "change", "sentence"),
    [
        ("model_index.json", {"_class_name": "\x1b[31mEvil"}, r"is a '\\x1b\[31mEvil'"),
        ("transformer/config.json", {"num_attention_heads": "x"}, "num_attention_heads 'x'"),
        ("transformer/config.json", {"num_attention_heads": 0}, "num_attention_heads 0"),
        ("transformer/config.json", {"patch_size": 0}, "patch 0"),
        ("vae/config.json", {"temporal_compression_ratio": 0}, "must be a whole number from 1"),
        ("scheduler/scheduler_config.json", {"shift": "x"}, "cannot be used"),
        ("scheduler/scheduler_config.json", {"shift": float("inf")}, "cannot be used"),
    ],
)
def test_a_folder_from_a_stranger_is_refused_in_a_sentence(tmp_path, file, change, sentence):
    folder = tmp_path / "model"
    shutil.copytree(tiny.WEIGHTS, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **change}))
    with pytest.raises(ModelError, match=sentence):
        find_model(str(folder))


def test_a_configuration_nested_too_deep_is_refused(tmp_path):
    (tmp_path / "model_index.json").write_text("[" * 100_000)
    with pytest.raises(ModelError, match="missing or not JSON"):
        find_model(str(tmp_path))
