"""Every row of the prompts is a row of the manifest once, after any kills of any drivers."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.models.model import Model, find_model
from cluster.results import manifest, verification
from cluster.results.manifest import Manifest
from cluster.results.parts import SCHEMA, SCHEMA_1
from cluster.store import open_store
from cluster.work import plan
from cluster.work.plan import plan_items, specification
from cluster.work.prompts import read_prompts
from cluster.work.rows import RowPlan, as_begun, plan_rows
from tests.support.hostile import FUZZ
from tests.support.manifest_rows import row_of

# Every kind of duplicate: of all of it, of the pixels alone, of a line without a seed.
KINDS = [
    {"prompt": "a", "seed": 1},
    {"prompt": "a", "seed": 1, "prompt_id": "x"},
    {"prompt": "a", "seed": 1, "prompt_id": "y", "note": "n"},
    {"prompt": "a"},
    {"prompt": "a", "prompt_id": "x"},
    {"prompt": "b", "prompt_id": "x", "note": "m"},
    {"prompt": "b", "height": 80},
]


def planned(path: Path, model: Model) -> RowPlan:
    return plan_rows(read_prompts(str(path)), model, model.defaults)


def written(folder: Path, rows: list[dict]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def drive(root: str, prompts: str) -> None:
    """A driver and its leaders in one process: delivers what is open, in an order of its own."""
    model = find_model("tiny")
    what = planned(Path(prompts), model)
    here = Manifest(open_store(root))
    plan.freeze(here.store, what.spec)
    shards = manifest.by_shard(what.items)
    print("ready", flush=True)
    for shard, missing in here.open_shards(what.items).items():
        for item in random.sample(missing, len(missing)):
            here.commit(row_of(item, here, data=item.id.encode()))
        here.close_shard(shard, shards[shard], what.beside)
    here.finish(shards)


def found(root: Path) -> pa.Table:
    return pyarrow.dataset.dataset(root / "manifest" / "parts").to_table().sort_by("index")


def test_rows_survive_any_kills_of_any_drivers(tmp_path, model, monkeypatch):
    chance = random.Random(7)
    rows = [chance.choice(KINDS) | {"rank": n} for n in range(40)]
    rows += [{"prompt": f"other {n % 250}", "seed": n % 250, "rank": 40 + n} for n in range(500)]
    chance.shuffle(rows)
    prompts, root = written(tmp_path, rows), tmp_path / "out"
    command = [sys.executable, "-m", "tests.cluster.results.test_rows", str(root), str(prompts)]
    for delay in (0.0, 0.05, 0.2, 0.4):
        drivers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
        for driver in drivers:
            driver.stdout.readline()  # it has planned, and begins
        time.sleep(delay)
        for driver in drivers:
            driver.send_signal(signal.SIGKILL)
            driver.wait()
    subprocess.run(command, check=True)
    table = found(root)
    assert table["index"].to_pylist() == list(range(540))
    assert table["prompt"].to_pylist() == [row["prompt"] for row in rows]
    assert table["extra.rank"].to_pylist() == [row["rank"] for row in rows]
    for row, given_ in zip(table.to_pylist(), rows, strict=True):
        assert given_.get("prompt_id") in (None, row["prompt_id"])
        assert row["extra.note"] == given_.get("note")
        assert given_.get("seed") in (None, row["seed"])
    receipts = list((root / "receipts").rglob("*.json"))
    assert len(receipts) == len(set(table["key"].to_pylist())) == len(planned(prompts, model).items)
    findings = verification.verify(open_store(str(root)))
    assert [problem for some in findings for _, problem in some if problem] == []
    assert manifest.finished(open_store(str(root)))[1].rows == 540


@settings(FUZZ, max_examples=50)
@given(rows=st.lists(st.sampled_from(KINDS), min_size=1, max_size=12), seeds=st.integers(1, 3))
def test_a_plan_has_every_row_once_and_every_pixel_once(model, tmp_path_factory, rows, seeds):
    prompts = read_prompts(str(written(tmp_path_factory.getbasetemp(), rows)))
    what = plan_rows(prompts, model, model.defaults, seeds=seeds)
    indices = [index for item in what.items for index, _ in item.rows]
    assert sorted(indices) == list(range(len(rows) * seeds))
    assert len({item.id for item in what.items}) == len(what.items)
    assert what.rows == what.beside.num_rows == len(rows) * seeds
    pixels = {(item.prompt, item.seed, item.arguments["height"]) for item in what.items}
    assert len(pixels) == len(what.items)


def test_ids_order_and_other_columns_are_part_of_what_a_job_is(tmp_path, model):
    first = [{"prompt": "a", "seed": 1, "prompt_id": "x", "note": "n"}, {"prompt": "b", "seed": 2}]
    others = [
        [{**first[0], "prompt_id": "y"}, first[1]],
        [{**first[0], "note": "m"}, first[1]],
        [first[1], first[0]],
        [*first, first[0]],
    ]
    specs = [planned(written(tmp_path, rows), model).spec for rows in [first, *others]]
    assert len({json.dumps(spec) for spec in specs}) == 5
    assert planned(written(tmp_path, first), model).spec == specs[0]


def test_a_root_begun_by_an_earlier_version_is_resumed_as_it_was_begun(tmp_path, model):
    """Its job.json knows items alone, and its parts have a map."""
    rows = [
        {"prompt": "a", "seed": 1},
        {"prompt": "a", "seed": 1},
        {"prompt": "c"},
        {"prompt": "c"},
    ]
    prompts = read_prompts(str(written(tmp_path, rows)))
    store = open_store(str(tmp_path / "out"))
    once = plan_items([prompts[0], prompts[2]], model, model.defaults)
    plan.freeze(store, specification("render", once, model, model.defaults))
    what = plan_rows(prompts, model, model.defaults)
    assert len(what.items) == 3
    begun = as_begun(store, what, prompts, model, model.defaults)
    plan.check_spec(store, begun.spec)
    assert [(item.id, item.index) for item in begun.items] == [(one.id, one.index) for one in once]
    here = Manifest(store)
    for item in begun.items:
        here.commit(row_of(item, here))
    here.close_shard(0, begun.items, begun.beside, SCHEMA_1 if begun.earlier else SCHEMA)
    table = found(tmp_path / "out")
    assert table.schema.equals(SCHEMA_1)
    (row, _) = manifest.read_rows(store.get(here.part_key(0)))
    assert row["metrics.psnr"] == 31.5


def test_the_parts_open_in_hugging_face_datasets(tmp_path, model):
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": "a", "tags": ["x"], "box": {"w": 1}, "note": None}, {"prompt": "b"}]
    prompts, root = written(tmp_path, rows), tmp_path / "out"
    drive(str(root), str(prompts))
    files = str(root / "manifest" / "parts" / "*.parquet")
    cache = str(tmp_path / "cache")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    assert loaded["prompt"] == ["a", "b"]
    assert loaded["metrics.psnr"] == [31.5, 31.5]
    assert loaded["extra.tags"] == [["x"], None]


def test_parts_have_the_schema_that_is_written_down(tmp_path, model):
    prompts, root = written(tmp_path, [{"prompt": "a", "rank": 1}]), tmp_path / "out"
    drive(str(root), str(prompts))
    schema = found(root).schema
    assert schema.names == [*SCHEMA.names, "extra.rank"]
    assert Counter(schema.types)[pa.map_(pa.string(), pa.float64())] == 0


if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    drive(*sys.argv[1:])
