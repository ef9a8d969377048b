"""Jobs with LoRA adapters, one for all rows or each row's own, as a person would run them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cluster.media import image
from cluster.models.adapter_names import adapter_name
from cluster.models.model import find_model
from cluster.ranks.loading import load_pipeline
from cluster.work.adapters import grouped
from cluster.work.plan import plan_items
from cluster.work.prompts import Prompt
from jobs._shared import cli
from jobs.render import __main__ as render
from jobs.replay import __main__ as replay
from meancache import Schedule
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
