"""Jobs with LoRA adapters, one for all rows or each row's own, as a person would run them."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cluster.fleet.forkserver import NAME_VARIABLE
from cluster.media import image
from cluster.models.adapter_names import adapter_name
from cluster.models.model import find_model
from cluster.ranks.loading import load_pipeline
from cluster.work.adapters import grouped
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs._shared import cli
from jobs.calibrate import __main__ as calibrate
from jobs.evaluate import __main__ as evaluate
from jobs.render import __main__ as render
from jobs.replay import __main__ as replay
from jobs.solve import __main__ as solve
from jobs.verify import __main__ as verify
from meancache import Calibration, Schedule
from tests.chaos import processes
from tests.support import saved_pipelines
from tests.support.adapters import save_adapter

STEPS = 3
PROMPT = "a red circle on a dark background"
NAMES = ("one", "two", "three")
SIZES = ((64, 96), (64, 64))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A small FLUX.1, three adapters, and rows of each in two sizes and of none."""
    folder = tmp_path_factory.mktemp("adapters")
    saved_pipelines.save("FLUX.1", folder / "model")
    pipeline = load_pipeline(
        find_model(str(folder / "model"), dtype="float32"), torch.device("cpu")
    )
    for seed, name in enumerate(NAMES):
        save_adapter(pipeline, folder, name, seed)
    rows = [
        {"prompt": PROMPT, "seed": 3, "height": height, "width": width, "lora": lora}
        for height, width in SIZES
        for lora in [*(f"{name}.safetensors" for name in NAMES), "one.safetensors:-0.5", ""]
    ]
    rows.append({"prompt": PROMPT, "seed": 3, "lora": ["one.safetensors", "two.safetensors:0.5"]})
    rows.append({"prompt": PROMPT, "seed": 3})  # the job's own
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def command(folder) -> list[str]:
    flags = ["--dtype", "float32", "--height", "64", "--width", "96", "--steps", str(STEPS)]
    flags += ["--lora", f"{folder / 'three.safetensors'}:2", "--gangs", "1"]
    return ["--model", str(folder / "model"), *flags, "--prompts", str(folder / "rows.jsonl")]


@pytest.fixture(scope="module")
def rendered(folder, command, shared_cluster) -> Path:
    assert render.main([*command, "--output", str(folder / "out")]) == 0
    return folder / "out"


def rows(root: Path) -> list[dict]:
    return pq.read_table(root / "manifest" / "parts").to_pylist()


def given(folder: Path) -> list[tuple[str, float]]:
    """What each row runs with: names and scales."""
    alone = [[(name, 1.0)] for name in NAMES]
    each = [*alone, [("one", -0.5)], []]
    return [*each, *each, [("one", 1.0), ("two", 0.5)], [("three", 2.0)]]


def test_each_row_is_what_diffusers_draws_with_its_adapters(folder, rendered):
    model = find_model(str(folder / "model"), dtype="float32")
    pipeline = load_pipeline(model, torch.device("cpu"))
    for name in NAMES:
        pipeline.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
    found = rows(rendered)
    for row, adapters in zip(found, given(folder), strict=True):
        if adapters:
            pipeline.enable_lora()
            pipeline.set_adapters([name for name, _ in adapters], [scale for _, scale in adapters])
        else:
            pipeline.disable_lora()
        call = {**model.defaults, "height": row["height"], "width": row["width"]}
        noise = torch.Generator().manual_seed(3)
        call |= {"num_inference_steps": STEPS, "output_type": "np", "return_dict": False}
        drawn = pipeline(prompt=PROMPT, generator=noise, **call)[0]
        expected = np.rint(drawn * 255).astype(int)
        stored = image.decode((rendered / row["key"]).read_bytes()).astype(int)
        assert np.abs(stored - expected).max() <= 1
    assert len({row["sha256"] for row in found}) == len(found)


def test_changes_of_adapters_are_counted(rendered):
    receipts = [json.loads(path.read_text()) for path in rendered.glob("receipts/*/*.json")]
    swaps = sum(receipt["adapter_swaps"] for receipt in receipts)
    # Seven sets of adapters; where one follows the other, items that are in flight may cross.
    assert 6 <= swaps < len(receipts) == 12


def test_a_job_that_was_killed_goes_on_to_the_same_pictures(command, rendered, tmp_path):
    root = Path(shutil.copytree(rendered, tmp_path / "out"))
    shutil.rmtree(root / "manifest")
    for path in sorted(root.glob("receipts/*/*.json"))[::2]:
        path.unlink()
    assert render.main([*command, "--output", str(root)]) == 0
    assert [row["sha256"] for row in rows(root)] == [row["sha256"] for row in rows(rendered)]


@pytest.mark.slow
def test_a_job_whose_ranks_and_driver_are_killed_goes_on_to_the_same_pictures(
    folder, command, shared_cluster, tmp_path
):
    """In a Ray of its own, whose processes are told by a variable of their environment."""
    longer = [*command, "--steps", "60"]
    whole, root = tmp_path / "whole", tmp_path / "out"
    assert render.main([*longer, "--output", str(whole)]) == 0
    mark = f"KILLED_{secrets.token_hex(8)}"
    ours = {mark: "1", "RAY_ADDRESS": "local", NAME_VARIABLE: secrets.token_hex(8)}
    run = [sys.executable, "-m", "jobs.render", *longer, "--output", str(root)]
    struck = []
    for at, whom in ((2, processes.ranks), (5, None), (8, processes.ranks), (10, None)):
        with subprocess.Popen(run, env={**os.environ, **ours}) as driver:
            while len(list(root.glob("receipts/*/*.json"))) < at:
                assert driver.poll() is None, "it ended before it was killed"
                time.sleep(0.01)
            for pid in [driver.pid] if whom is None else whom(mark):
                struck.append(processes.send(pid, signal.SIGKILL))
            if whom is not None:  # the job itself goes on; and then it is ended too
                while len(list(root.glob("receipts/*/*.json"))) < at + 1:
                    assert driver.poll() is None, "it did not survive its ranks"
                    time.sleep(0.01)
            driver.kill()
        assert processes.left_over(processes.marked(mark)) == []
    assert struck.count(True) >= 4
    assert subprocess.run(run, env={**os.environ, **ours}, check=False).returncode == 0
    assert [row["sha256"] for row in rows(root)] == [row["sha256"] for row in rows(whole)]
    receipts = [json.loads(path.read_text()) for path in root.glob("receipts/*/*.json")]
    # Ranks that are new have none to begin with.
    assert 6 <= sum(receipt["adapter_swaps"] for receipt in receipts) <= len(receipts) == 12
    assert verify.main([str(root)]) == 0


@pytest.mark.slow
def test_two_ranks_draw_each_row_with_its_adapters(command, rendered, tmp_path):
    root = tmp_path / "two"
    assert render.main([*command, "--output", str(root), "--gang-size", "2"]) == 0
    for alone, shared in zip(rows(rendered), rows(root), strict=True):
        assert (alone["item_id"], shared["world_size"]) == (shared["item_id"], 2)
        one, two = (
            image.decode((place / row["key"]).read_bytes()).astype(int)
            for place, row in ((rendered, alone), (root, shared))
        )
        assert np.abs(one - two).max() <= 1
    assert replay.main([str(root), rows(root)[10]["item_id"]]) == 0


def test_verify_reads_the_adapters_that_rows_name(rendered, tmp_path, capsys):
    root = Path(shutil.copytree(rendered, tmp_path / "out"))
    assert verify.main([str(root)]) == 0
    gone, damaged, _ = sorted(root.glob("adapters/*/*.safetensors"))
    gone.unlink()
    damaged.write_bytes(damaged.read_bytes()[:-1])
    capsys.readouterr()
    assert verify.main([str(root)]) == 1
    said = capsys.readouterr().out
    assert f"{gone} is missing" in said
    assert f"{damaged} is damaged: its" in said


def test_a_calibration_of_adapters_makes_schedules_for_them_alone(folder, command, capsys):
    (folder / "one.txt").write_text(PROMPT)
    (folder / "other.txt").write_text("a blue square")
    here = [*command, "--prompts", str(folder / "one.txt")]
    out = folder / "calibrated"
    assert calibrate.main([*here, "--seeds", "1", "--output", str(out)]) == 0
    found = Calibration.load(out / "calibration.parquet")
    (name,) = found.conditions["lora"]
    assert name.endswith("-2")
    assert len(list(out.glob("adapters/*/*.safetensors"))) == 1
    fit = ["--calibration", str(out / "calibration.parquet"), "--budgets", "2"]
    solved = ["--output", str(folder / "solved")]
    assert solve.main([*fit, *solved]) == cli.EXIT_REFUSED
    assert f"made under the adapters ['{name}']" in capsys.readouterr().err
    assert solve.main([*fit, "--method", "secant", *solved]) == 0
    judged = ["--prompts", str(folder / "other.txt"), "--schedules", str(folder / "solved")]
    assert evaluate.main([*here, *judged, "--output", str(folder / "evaluated")]) == 0
    by_it = ["--calibration", str(out / "calibration.parquet"), "--budget", "2", "--dry-run"]
    by_it += ["--output", str(folder / "by-it")]
    capsys.readouterr()
    assert render.main([*here, *by_it]) == 0
    assert "carried from" not in capsys.readouterr().out
    none = [*here[: here.index("--lora")], *here[here.index("--lora") + 2 :]]
    assert render.main([*none, *by_it]) == 0
    assert f"carried from lora ['{name}'] -> " in capsys.readouterr().out


def test_a_row_is_replayed_with_the_adapters_that_its_root_keeps(rendered, capsys):
    (row,) = (row for row in rows(rendered) if row["index"] == 10)
    assert replay.main([str(rendered), row["item_id"]]) == 0
    assert "the same: " in capsys.readouterr().out


def test_items_are_grouped_within_their_shards_to_and_fro():
    model = find_model("tiny")
    loras = [(("a" * 64, 1.0),), (("b" * 64, 1.0),)]
    prompts = [Prompt(n, str(n), str(n), 0, {"lora": loras[n % 2]}) for n in range(500)]
    items = plan_items(prompts, model, model.defaults)
    ordered = [item.arguments["lora"] for item in grouped(items)]
    assert ordered == [loras[0]] * 125 + [loras[1]] * 250 + [loras[0]] * 125
    assert {item.id for item in grouped(items)} == {item.id for item in items}
    # Both shards as one, and in it those of the same length side by side.
    alike = grouped(items, lambda item: len(item.prompt), shards=2)
    lengths = [(item.arguments["lora"], len(item.prompt)) for item in alike]
    assert lengths == sorted(lengths)


def test_a_schedule_of_other_adapters_is_refused(folder, command, capsys):
    model = find_model(str(folder / "model"), dtype="float32")
    edges = [{"start": 0, "stop": STEPS, "span": 1}]
    arguments = {**model.defaults, "height": 64, "width": 96}
    one = Schedule.from_edges(model.grid(STEPS, arguments).sigmas, edges).to_json()
    one["conditions"] = {"lora": [adapter_name("0" * 64, 1.0)]}
    del one["id"]
    (folder / "schedule.json").write_text(json.dumps(one))
    (folder / "one.txt").write_text(PROMPT)
    flags = ["--prompts", str(folder / "one.txt"), "--schedule", str(folder / "schedule.json")]
    refused = [*command[:-2], *flags, "--output", str(folder / "none")]
    assert render.main(refused) == cli.EXIT_REFUSED
    assert "the schedule was made for lora ['0000000000000000-1']" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        ("gone.safetensors", "there is no file"),
        ("model/model_index.json", "only .safetensors files are read"),
        ("rows.safetensors", "is no whole safetensors file"),
        ("model/vae", "and none is a LoRA's"),
        ("one.safetensors:1e9", "the scale must lie within 100"),
        (".", "holds 4 .safetensors files and none is called pytorch_lora_weights"),
    ],
)
def test_what_is_no_adapter_is_refused(folder, command, capsys, lora, sentence):
    shutil.copy(folder / "rows.jsonl", folder / "rows.safetensors")
    given_ = command.copy()
    given_[given_.index("--lora") + 1] = str(folder / lora)
    assert render.main([*given_, "--output", str(folder / "none")]) == cli.EXIT_REFUSED
    assert sentence in capsys.readouterr().err
