"""What a user gets wrong is said in one sentence, with exit code 2, before any rank starts."""

import dataclasses
import json
from pathlib import Path

import pytest

from cluster.fleet.errors import FleetError
from cluster.store import open_store
from cluster.work import plan
from jobs._shared import cli as _cli
from jobs._shared.roots import SUBMITTED_MARK
from jobs.calibrate import __main__ as calibrate
from jobs.demo import __main__ as demo
from jobs.render import __main__ as render
from jobs.render.workflow import prepare
from jobs.solve import __main__ as solve
from meancache import Schedule
from tests.support import saved_pipelines
from tests.support.configs import configured


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs a job that must be refused; returns what it said."""

    def run(main, *arguments: str) -> str:
        monkeypatch.setattr(
            "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
        )
        try:
            code = main(list(arguments))
        except SystemExit as exit_:  # the parser's own refusals
            code = exit_.code
        assert code == _cli.EXIT_REFUSED == 2
        said = capsys.readouterr().err.strip().splitlines()
        assert "Traceback" not in "\n".join(said)
        assert "error: " in said[-1]
        assert [line for line in said if line.startswith("error:")] in ([], said)
        return said[-1]

    return run


def rendering(prompts: str, root: object, *more: str) -> list[str]:
    return ["--model", "tiny", "--prompts", prompts, "--output", str(root), *more]


def saved(tmp_path: Path, here, steps: int = 50, **changes) -> str:
    grid = here.grid(steps)
    data = Schedule.from_edges(grid.sigmas, [{"start": 0, "stop": steps, "span": 1}]).to_json()
    del data["id"]
    path = tmp_path / "schedule.json"
    path.write_text(json.dumps({**data, **changes}))
    return str(path)


@pytest.mark.parametrize("main", [render.main, calibrate.main])
@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.txt", None, "absent.txt"),
        ("empty.txt", "", "there is no prompt in it"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt_id": "b"}\n', "line 2: no prompt"),
        ("p.jsonl", '{"prompt": "a \\ud800"}\n', "line 1: prompt holds a lone surrogate"),
        (
            *("p.jsonl", '{"text": "a"}\n'),
            "line 1: no column 'prompt', but 'text'; if that holds the prompts, give "
            "--prompt-column text",
        ),
        ("p.jsonl", '{"prompt": "a", "Seed": 5}\n', "line 1: the column 'Seed' is none"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path, refused, main, name, content, sentence):
    file = tmp_path / name
    if content is not None:
        file.write_text(content)
    assert sentence in refused(main, *rendering(str(file), tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--gang-size", "5"], "gang size 5 does not divide the 48 tokens"),
        (["--gang-size", "0"], "0 must be at least 1"),
        (["--gangs", "4:2"], "gangs '4:2' must be A or A:B"),
        (["--height", "50"], "height 50 must be a multiple of 16"),
        (["--height", "16000000000000000000000"], "must be between 1 and 16384"),
        (["--guidance-scale", "nan"], "nan must be a finite number"),
        (["--steps", "20000"], "num_inference_steps 20000 must be between 1 and 1000"),
        (["--num-frames", "8"], "num_frames 8 must be 1 more than a multiple of 4"),
        (["--budget", "0"], "budget 0 must be between 1 and the 50 steps"),
        (["--budget", "51"], "budget 51 must be between 1 and the 50 steps"),
        (["--budget", "5", "--schedule", "x.json"], "not allowed with"),
        (["--target-psnr", "99"], "no budget here reaches 99 dB: 15 forwards come closest"),
        (["--schedule", "absent.json"], "schedule absent.json"),
        (["--model", "huge"], "unknown model 'huge'"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--bogus", "1"], "--bogus"),
        (["--budgets", "10"], "did you mean --budget?"),
        (["--attention", "_flash_3", "--gang-size", "2"], "'_flash_3' is for gangs of one"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, refused, prompts, more, sentence):
    assert sentence in refused(render.main, *rendering(prompts, tmp_path / "out", *more))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 30}, "for a grid of 30 steps"),
        ({"model": {"id": "hunyuan"}}, "made for id 'hunyuan', but this job has 'tiny'"),
        ({"conditions": {"num_frames": 17}}, "made for num_frames 17"),
        ({"surprise": 1}, "no key 'surprise'"),
    ],
)
def test_a_schedule_for_something_else(tmp_path, refused, prompts, model, changes, sentence):
    schedule = saved(tmp_path, model, **changes)
    out = tmp_path / "out"
    assert sentence in refused(render.main, *rendering(prompts, out, "--schedule", schedule))


def test_a_row_that_overrides_what_the_schedule_was_made_for(tmp_path, refused, model):
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a"}\n{"prompt": "b", "num_inference_steps": 20}\n')
    schedule = saved(tmp_path, model)
    said = refused(render.main, *rendering(str(rows), tmp_path / "out", "--schedule", schedule))
    assert "tiny runs 20 steps" in said


def test_a_transformer_whose_blocks_diffusers_does_not_name_is_not_compiled(
    tmp_path, refused, prompts, capsys
):
    model = ["--model", str(saved_pipelines.save("SD3", tmp_path / "model"))]
    capsys.readouterr()  # how it was saved
    said = refused(render.main, *rendering(prompts, tmp_path / "out", *model, "--compile"))
    assert "names no blocks that repeat in the transformer of a StableDiffusion3Pipeline" in said


def test_prompts_of_several_settings_make_no_graph(tmp_path, refused):
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a"}\n{"prompt": "b", "guidance_scale": 3}\n')
    said = refused(calibrate.main, *rendering(str(rows), tmp_path / "out"))
    assert "overrides pipeline arguments" in said


def test_two_prompts_that_a_graph_could_not_tell_apart(tmp_path, refused):
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a", "prompt_id": "x"}\n{"prompt": "b", "prompt_id": "x"}\n')
    said = refused(calibrate.main, *rendering(str(rows), tmp_path / "out"))
    assert "two prompts have the prompt_id 'x' and the seed" in said


def test_a_root_of_other_prompts_says_so(tmp_path, refused, prompts):
    args = rendering(prompts, tmp_path / "out")
    prepared = prepare(configured("render", args))
    plan.freeze(prepared.store, prepared.spec)
    Path(prompts).write_text("another prompt")
    said = refused(render.main, *args)
    assert "items is 3 there and 1 here" in said
    assert "the prompts, or what their rows override, are others there" in said


def test_a_root_of_another_job_shows_the_difference(tmp_path, refused, prompts, model):
    args = rendering(prompts, tmp_path / "out")
    prepared = prepare(configured("render", [*args, "--guidance-scale", "4"]))
    plan.freeze(prepared.store, prepared.spec)
    said = refused(render.main, *args)
    assert "--guidance-scale is 4.0 there and 6.0 here" in said
    assert "choose another --output" in said


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        ("gcs://bucket/x", "gcs://... is not supported"),
        ("s3://", "s3://"),
        ("s3://no-such-bucket-here/x", "no-such-bucket-here"),
    ],
)
@pytest.mark.usefixtures("s3_endpoint")
def test_an_output_that_does_not_exist(refused, prompts, graph_folder, output, sentence):
    assert sentence in refused(render.main, *rendering(prompts, output))
    assert sentence in refused(calibrate.main, *rendering(prompts, output))
    assert sentence in refused(solve.main, "--graph", graph_folder, "--output", output)
    assert sentence in refused(demo.main, "--output", output)


def test_an_output_that_is_a_file(tmp_path, refused, prompts):
    (tmp_path / "out").write_text("")
    assert "out" in refused(render.main, *rendering(prompts, tmp_path / "out"))


def test_a_bucket_that_refuses(refused, prompts, s3_root, strict_s3_endpoint, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict_s3_endpoint)
    assert "AWS_ACCESS_KEY_ID" in refused(render.main, *rendering(prompts, s3_root))
    monkeypatch.setenv(SUBMITTED_MARK, "{}")
    assert "not those of the shell" in refused(render.main, *rendering(prompts, s3_root))


def test_a_store_that_ignores_conditional_puts(refused, prompts, rclone):
    assert "ignores" in refused(render.main, *rendering(prompts, rclone))


def test_what_a_yaml_file_says_is_text(tmp_path, refused, prompts):
    config = tmp_path / "render.yaml"
    config.write_text("gangs: 2:1\ngang_size: 1\n")  # to YAML itself, 2:1 is the number 121
    said = refused(render.main, *rendering(prompts, tmp_path / "out", "--config", str(config)))
    assert "gangs '2:1' must be A or A:B" in said
    for broken in ("gangs: [", "- a list"):
        config.write_text(broken)
        refused(render.main, *rendering(prompts, tmp_path / "out", "--config", str(config)))


def test_a_submitted_job_may_not_write_into_its_temporary_copy(refused, prompts, monkeypatch):
    monkeypatch.setenv(SUBMITTED_MARK, "{}")
    assert "'out' is a relative path" in refused(render.main, *rendering(prompts, "out"))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--budgets", "0"], "budget 0 must be between 1 and the 50 steps"),
        (["--budgets", "8,51"], "budget 51 must be between 1 and the 50 steps"),
        (["--budgets", "ten"], "budgets 'ten' must be numbers"),
        (["--gamma", "-1"], "gamma -1.0 must be a positive number"),
        (["--method", "magic"], "invalid choice: 'magic'"),
        (["--graph", "/absent"], "/absent/statistics.parquet"),
        (["--reference-steps", "120"], "120 must be a multiple of the 50 steps"),
        (["--execution", "fine-step"], "--execution needs --method paper; fitted has no use"),
        (["--reference-steps", "50"], "50 must be a multiple of the 50 steps"),
        (["--reference-steps", "20000"], "num_inference_steps 20000 must be between"),
        (["--method", "secant", "--target-psnr", "30"], "--target-psnr needs --method fitted"),
        (["--method", "paper", "--reference-steps", "300"], "needs --method fitted"),
        (["--gang-size", "5"], "gang size 5 does not divide the 48 tokens"),
    ],
)
def test_what_cannot_be_solved(tmp_path, refused, graph_folder, more, sentence):
    out = str(tmp_path / "out")
    assert sentence in refused(solve.main, "--graph", graph_folder, "--output", out, *more)
    assert not (tmp_path / "out").exists()


def test_a_graph_of_a_model_that_is_another_now(tmp_path, refused, graph):
    other = dataclasses.replace(graph, model={**graph.model, "revision": "0" * 40})
    open_store(str(tmp_path)).put("statistics.parquet", other.statistics_parquet())
    said = refused(solve.main, "--graph", str(tmp_path), "--output", str(tmp_path / "out"))
    assert "calibrate again, or solve with --method secant" in said


def test_a_graph_without_prompts_to_run_again(tmp_path, refused, graph):
    bare = {key: dataclasses.replace(item, prompt="") for key, item in graph.trajectories.items()}
    other = dataclasses.replace(graph, trajectories=bare)
    open_store(str(tmp_path)).put("statistics.parquet", other.statistics_parquet())
    said = refused(solve.main, "--graph", str(tmp_path), "--output", str(tmp_path / "out"))
    assert "holds no prompts" in said


def test_a_file_that_is_no_graph(tmp_path, refused):
    open_store(str(tmp_path)).put("statistics.parquet", b"PAR1")
    said = refused(solve.main, "--graph", str(tmp_path), "--output", str(tmp_path / "out"))
    assert "not a calibration of trajectory statistics" in said


@pytest.mark.parametrize("main", [render.main, calibrate.main])
def test_a_dry_run_and_a_cluster_that_refuses_leave_no_trace(
    tmp_path, prompts, capsys, monkeypatch, main
):
    asked = rendering(prompts, tmp_path / "out" / "below")
    assert main([*asked, "--dry-run"]) == 0
    assert not (tmp_path / "out").exists()

    def refuse(*_: object) -> None:
        raise FleetError("no node has room")

    monkeypatch.setattr("cluster.fleet.connection.connect", refuse)
    assert main(asked) == _cli.EXIT_REFUSED
    assert capsys.readouterr().err.endswith("error: no node has room\n")
    assert not (tmp_path / "out").exists()
