"""python -m jobs.replay: a row again from what its root holds, and whether it is the same."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.media import video
from cluster.results.manifest import Manifest
from cluster.store import open_store
from cluster.work.plan import SPEC_KEY, plan_items, specification
from cluster.work.prompts import Prompt
from jobs.render import __main__ as render
from jobs.replay import __main__ as replay
from jobs.replay.workflow import Prepared, compare, prepare
from meancache.json_values import canonical_json
from tests.support.configs import configured
from tests.support.manifest_rows import finish, row_of

OVERRIDE = {"negative_prompt": "blur", "guidance_scale": 3.0, "true_cfg_scale": 2.0}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory, shared_cluster) -> Path:
    """A root of two rows. The second was appended, and overrides what no column holds."""
    folder = tmp_path_factory.mktemp("rendered")
    prompts = folder / "prompts.jsonl"
    command = ["--model", "tiny", "--prompts", str(prompts), "--steps", "2", "--gangs", "1"]
    command += ["--output", str(folder / "out")]
    rows = [{"prompt": "a red circle", "num_frames": 5}, {"prompt": "a blue square", **OVERRIDE}]
    for number, more in ((1, []), (2, ["--append"])):
        prompts.write_text("\n".join(map(json.dumps, rows[:number])))
        assert render.main([*command, *more]) == 0
    return folder / "out"


@pytest.fixture
def root(tmp_path, rendered) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(rendered, tmp_path / "out"))


def rows(root: Path) -> list[dict]:
    return pq.read_table(root / "manifest" / "parts").to_pylist()


def test_an_appended_row_that_overrides_arguments_is_rendered_again_to_the_same_bytes(
    rendered, tmp_path, capsys
):
    row = rows(rendered)[1]
    output = tmp_path / "again.mp4"
    assert replay.main([str(rendered), row["item_id"], "--output", str(output)]) == 0
    assert f"the same: {row['bytes']} bytes" in capsys.readouterr().out
    assert output.read_bytes() == (rendered / row["key"]).read_bytes()


def prepared(root: Path, item_id: str, *more: str) -> Prepared:
    return prepare(configured("replay", [str(root), item_id, *more]))


def test_a_row_that_overrides_sizes_alone_needs_no_receipt(root):
    row = rows(root)[0]
    shutil.rmtree(root / "receipts")
    item = prepared(root, row["item_id"]).item
    assert (item.id, item.prompt) == (row["item_id"], "a red circle")
    assert item.arguments["num_frames"] == 5


def test_a_gang_is_as_large_as_then_unless_another_is_asked_for(root):
    item_id = rows(root)[0]["item_id"]
    assert prepared(root, item_id).gangs.size == 1
    assert prepared(root, item_id, "--gang-size", "2").gangs.size == 2


@pytest.fixture
def refused(capsys, monkeypatch):
    """Replays what must be refused before any rank starts; returns what was said."""

    def run(root: object, item_id: str, *more: str) -> str:
        monkeypatch.setattr(
            "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
        )
        assert replay.main([str(root), item_id, *more]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("error: ")
        assert said.isprintable()
        return said

    return run


@pytest.mark.parametrize(
    "item_id", ["", "../../etc/passwd", "A" * 32, "0" * 31, "0" * 33, "\x1b[31m", "é" * 32]
)
def test_what_is_no_item_id_is_refused(tmp_path, refused, item_id):
    assert "must be 32 hex digits" in refused(tmp_path, item_id)


def test_an_item_that_is_not_there_is_refused(root, refused):
    assert f"has the item_id {'0' * 32}" in refused(root, "0" * 32)


def test_a_root_that_is_none_is_refused(tmp_path, refused):
    assert "job.json does not exist" in refused(tmp_path, "0" * 32)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        (b"not JSON", "is not a job's JSON"),
        (b"[" * 10_000, "is not a job's JSON"),
        (b'{"kind": "render", "model": {}}', "is not a job's JSON"),
        (b'{"kind":"render","arguments":{},"schedule":[],"model":'
         b'{"id":"","revision":"","pipeline":"","dtype":""}}', "is not a job's JSON"),
        (b'{"kind":"render","arguments":{},"schedule":{},"model":'
         b'{"id":7,"revision":"","pipeline":"","dtype":""}}', "is not a job's JSON"),
        (b'{"kind":"calibrate","arguments":{},"schedule":null,"model":'
         b'{"id":"","revision":"","pipeline":"","dtype":""}}', "of a job of kind 'calibrate'"),
    ],
)  # fmt: skip
def test_a_root_of_another_job_is_refused(tmp_path, refused, spec, sentence):
    (tmp_path / SPEC_KEY).write_bytes(spec)
    assert sentence in refused(tmp_path, "0" * 32)


def change(root: Path, **model: object) -> None:
    spec = json.loads((root / SPEC_KEY).read_bytes())
    spec["model"] |= model
    (root / SPEC_KEY).write_bytes(canonical_json(spec))


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ({"revision": "0" * 40}, f"of revision '{'0' * 40}', but here it is"),
        ({"id": "absent-model"}, "unknown model"),
        ({"pipeline": "WanPipeline"}, "of pipeline 'WanPipeline', but here it is"),
        ({"dtype": "load"}, "dtype 'load' must be one of"),
        ({"dtype": "bfloat16"}, "does not hash to"),
    ],
)
def test_another_model_than_the_jobs_is_refused(root, refused, model, sentence):
    change(root, **model)
    assert sentence in refused(root, rows(root)[0]["item_id"])


def test_a_row_whose_receipt_is_gone_is_refused_rather_than_guessed(root, refused):
    row = rows(root)[1]
    shutil.rmtree(root / "receipts")
    assert "does not hash to" in refused(root, row["item_id"])


def test_a_file_that_exists_is_not_overwritten(root, refused, tmp_path):
    (tmp_path / "mine.mp4").write_bytes(b"mine")
    output = str(tmp_path / "mine.mp4")
    assert "is not overwritten" in refused(root, rows(root)[0]["item_id"], "--output", output)


def test_a_gang_that_the_model_cannot_have_is_refused(root, refused):
    item_id = rows(root)[0]["item_id"]
    assert "gang size 5 does not divide" in refused(root, item_id, "--gang-size", "5")


def test_what_a_benchmark_left_is_refused(model, tmp_path, refused):
    items = plan_items([Prompt(1, "a", "a")], model, model.defaults)
    store = open_store(str(tmp_path))
    store.put_new(SPEC_KEY, canonical_json(specification("render", items, model, model.defaults)))
    finish(Manifest(store), items)
    assert "as jobs.benchmark does" in refused(tmp_path, items[0].id)


@pytest.fixture
def stored(model, tmp_path) -> tuple:
    """A store with one video, its row and its frames."""
    (item,) = plan_items([Prompt(1, "a", "a")], model, model.defaults)
    store = open_store(str(tmp_path))
    frames = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
    return store, row_of(item, Manifest(store), data=video.encode(frames, 8)), frames


def test_equal_bytes_match(stored):
    store, row, frames = stored
    assert compare(store, row, video.encode(frames, 8)) == (
        True,
        f"the same: {row['bytes']} bytes of sha256 {row['sha256']}",
    )


def test_equal_bytes_match_even_where_the_stored_video_is_gone(stored):
    store, row, frames = stored
    store.delete(row["key"])
    assert compare(store, row, video.encode(frames, 8))[0]


def test_equal_pixels_in_other_bytes_match(stored):
    store, row, frames = stored
    padded = video.encode(frames, 8) + b"\0\0\0\x08free"  # an empty box, which players skip
    same, sentence = compare(store, row, padded)
    assert same
    assert "the same pixels in other bytes" in sentence


def test_other_pixels_are_told_in_decibels(stored):
    store, row, frames = stored
    other = np.clip(frames.astype(int) + 20, 0, 255).astype(np.uint8)
    same, sentence = compare(store, row, video.encode(other, 8))
    assert not same
    decibels = float(sentence.split("PSNR ")[1].split(" dB")[0])
    # 20 levels of 255 are 22.1 dB, and 8 bits clip some of it.
    assert 21.5 < decibels < 24


@pytest.mark.parametrize("spoil", [lambda data: data[:-1], lambda data: b"", lambda data: None])
def test_a_stored_video_that_is_damaged_or_gone_is_said(stored, spoil):
    store, row, frames = stored
    data = spoil(store.get(row["key"]))
    store.delete(row["key"])
    if data is not None:
        store.put(row["key"], data)
    same, sentence = compare(store, row, video.encode(255 - frames, 8))
    assert not same
    assert "not to be compared" in sentence
    assert hashlib.sha256(b"").hexdigest() != row["sha256"]
