"""Receipts commit, parts follow from them, `_SUCCESS` closes; verify finds every change."""

import hashlib
import io
import json

import pyarrow.parquet as pq
import pytest

from cluster import manifest
from cluster.store import MissingKey, open_store


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


def row_of(item, store, status="ok", data=b"mp4", **changes):
    sha256 = hashlib.sha256(data).hexdigest()
    key = manifest.video_key(item.id, sha256)
    empty = dict.fromkeys(manifest.SCHEMA.names)
    known = {
        "item_id": item.id,
        "prompt_id": item.prompt_id,
        "prompt": item.prompt,
        "status": status,
        "model": "tiny",
        "model_revision": "r",
        "index": item.index,
        "shard": item.shard,
        "seed": item.seed,
        "num_frames": 9,
        "width": 64,
        "height": 64,
        "num_inference_steps": 50,
        "world_size": 2,
        "attempts": 1,
        "fps": 8.0,
        "metrics": {"psnr": 31.5},
        "created_at": manifest.now(),
    }
    if status == "ok":
        store.put_new(key, data)
        known |= {"uri": store.uri(key), "key": key, "sha256": sha256, "bytes": len(data)}
    else:
        known |= {"error": "rank 1 died"}
    return {**empty, **known, **changes}


def finish(store, items, failed=()):
    for item in items:
        status = "failed" if item.index in failed else "ok"
        manifest.commit_receipt(store, row_of(item, store, status, data=item.id.encode()))
    manifest.commit_shard(store, 0, items)
    return manifest.commit_success(store, [0])


def test_what_has_no_receipt_is_open(store, items):
    assert manifest.open_items(store, items) == items
    manifest.commit_receipt(store, row_of(items[2], store))
    assert manifest.open_items(store, items) == [*items[:2], *items[3:]]


def test_a_closed_shard_is_not_looked_into_again(store, items, tmp_path):
    finish(store, items)
    for receipt in (tmp_path / "receipts" / "000000").iterdir():
        receipt.unlink()
    assert manifest.open_items(store, items) == []


def test_of_two_commits_of_an_item_the_first_counts(store, items):
    first = row_of(items[0], store, data=b"one")
    second = row_of(items[0], store, data=b"two")
    assert manifest.commit_receipt(store, first) == first
    assert manifest.commit_receipt(store, second) == first
    assert manifest.read_receipt(store, items[0]) == first


def test_a_part_needs_all_receipts_of_its_shard(store, items):
    manifest.commit_receipt(store, row_of(items[0], store))
    with pytest.raises(MissingKey):
        manifest.commit_shard(store, 0, items)
    with pytest.raises(MissingKey):
        manifest.commit_success(store, [0])
    assert not list(store.list("manifest/"))


def test_parts_hold_ok_rows_in_plan_order_and_failures_the_others(store, items):
    success = finish(store, items, failed={1, 4})
    part = pq.read_table(io.BytesIO(store.get("manifest/parts/part-000000.parquet")))
    assert part.schema.equals(manifest.SCHEMA)
    assert part["index"].to_pylist() == [0, 2, 3, 5, 6]
    assert set(part["status"].to_pylist()) == {"ok"}
    assert part["metrics"].to_pylist()[0] == [("psnr", 31.5)]
    failures = pq.read_table(io.BytesIO(store.get("failures/part-000000.parquet")))
    assert failures["index"].to_pylist() == [1, 4]
    assert failures["error"].to_pylist() == ["rank 1 died"] * 2
    assert (success["rows"], success["failed"]) == (5, 2)
    assert json.loads(store.get("manifest/_SUCCESS")) == success


def test_a_part_is_a_pure_function_of_its_receipts(store, items):
    finish(store, items)
    part = store.get(manifest.part_key(0))
    store.delete(manifest.part_key(0))
    manifest.commit_shard(store, 0, items)
    assert store.get(manifest.part_key(0)) == part
    manifest.commit_success(store, [0])  # a second driver ends the same way


def test_a_shard_of_failures_alone_is_closed_too(store, items):
    finish(store, items, failed=range(7))
    assert manifest.open_items(store, items) == []
    assert pq.read_table(io.BytesIO(store.get(manifest.part_key(0)))).num_rows == 0


def test_odd_prompts_survive_receipt_and_part(store, items):
    odd = "nul \x00, escape \x1b[31m, مرحبا, " + "x" * 1_000_000
    manifest.commit_receipt(store, row_of(items[0], store, prompt=odd))
    manifest.commit_shard(store, 0, items[:1])
    assert manifest.read_rows(store.get(manifest.part_key(0)))[0]["prompt"] == odd


def problems(store) -> dict[str, str]:
    return {uri: problem for uri, problem in manifest.verify(store) if problem is not None}


def test_verify_is_content_with_what_was_committed(store, items):
    finish(store, items, failed={1})
    checked = list(manifest.verify(store))
    assert problems(store) == {}
    assert len(checked) == 1 + 2 + 7 + 6  # _SUCCESS, part and failures, receipts, videos


def test_verify_names_a_video_with_one_byte_changed(store, items, tmp_path):
    finish(store, items)
    video = sorted((tmp_path / "videos").rglob("*.mp4"))[3]
    data = bytearray(video.read_bytes())
    data[5] ^= 1
    video.write_bytes(data)
    found = problems(store)
    assert list(found) == [str(video)]
    assert "do not have the sha256" in found[str(video)]


@pytest.mark.parametrize(
    "pattern",
    [
        "videos/**/*.mp4",
        "receipts/**/*.json",
        "manifest/parts/*.parquet",
        "failures/*.parquet",
        "manifest/_SUCCESS",
    ],
)
def test_verify_names_whatever_is_missing_cut_or_replaced(store, items, tmp_path, pattern):
    finish(store, items, failed={1})
    file = sorted(tmp_path.glob(pattern))[0]
    data = file.read_bytes()
    for spoiled in (data[:-3], b"", b"{}", b"[" * 100_000, b'{"parts": [{"key": 5}]}'):
        file.write_bytes(spoiled)
        assert str(file) in problems(store)
    file.unlink()
    assert "missing" in problems(store)[str(file)]


@pytest.mark.parametrize("pattern", ["receipts/**/*.json", "manifest/_SUCCESS"])
def test_verify_names_a_file_whose_content_was_changed_with_care(store, items, tmp_path, pattern):
    finish(store, items)
    file = sorted(tmp_path.glob(pattern))[0]
    whole = json.loads(file.read_text())
    for name, value in whole.items():
        changed = value + 1 if isinstance(value, int | float) else "other"
        file.write_text(json.dumps({**whole, name: changed}))
        assert list(problems(store)), name
    file.write_text(json.dumps(whole))
    assert problems(store) == {}


def test_verify_names_a_part_that_is_not_the_jobs(store, items, tmp_path):
    finish(store, items)
    extra = tmp_path / "manifest" / "parts" / "part-000099.parquet"
    extra.write_bytes(store.get(manifest.part_key(0)))
    assert "is not named" in problems(store)[str(extra)]
