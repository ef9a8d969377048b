"""Receipts commit, parts follow from them, `_SUCCESS` closes; retry rounds rewrite nothing."""

import io
import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from cluster.results import manifest
from cluster.results.manifest import Manifest, Success
from cluster.store import MissingKey, StoreError, open_store
from tests.support.manifest_rows import finish, row_of


@pytest.fixture
def store(tmp_path):
    return open_store(str(tmp_path))


@pytest.fixture
def job(store):
    return Manifest(store)


def contents(folder) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_has_no_receipt_is_open(job, items):
    assert job.open_shards(items) == {0: items}
    job.commit(row_of(items[2], job))
    assert job.open_shards(items) == {0: [*items[:2], *items[3:]]}


def test_a_closed_shard_is_not_looked_into_again(job, items, tmp_path):
    finish(job, items)
    for receipt in (tmp_path / "receipts" / "000000").iterdir():
        receipt.unlink()
    assert job.open_shards(items) == {}


def test_a_shard_that_is_full_but_not_closed_is_open_without_items(job, items):
    for item in items:
        job.commit(row_of(item, job))
    assert job.open_shards(items) == {0: []}


def test_shards_are_looked_at_apart(job, items):
    items = [replace(item, shard=item.index % 3) for item in items]
    finish(job, [item for item in items if item.shard == 1])
    job.commit(row_of(items[0], job))
    assert job.open_shards(items) == {0: [items[3], items[6]], 2: [items[2], items[5]]}


def test_of_two_commits_of_an_item_the_first_counts(job, items):
    first = row_of(items[0], job, data=b"one")
    second = row_of(items[0], job, data=b"two")
    assert job.commit(first) == first
    assert job.commit(second) == first
    assert job.receipt(items[0]) == first


def test_a_part_needs_all_receipts_of_its_shard(job, items, store):
    job.commit(row_of(items[0], job))
    with pytest.raises(MissingKey):
        job.close_shard(0, items)
    with pytest.raises(MissingKey):
        job.finish([0])
    assert not list(store.list("manifest/"))


def test_parts_hold_ok_rows_in_plan_order_and_failures_the_others(job, items, store):
    success = finish(job, items, failed={1, 4})
    part = pq.read_table(io.BytesIO(store.get("manifest/parts/part-000000.parquet")))
    assert part.schema.equals(manifest.SCHEMA)
    assert part["index"].to_pylist() == [0, 2, 3, 5, 6]
    assert set(part["status"].to_pylist()) == {"ok"}
    assert part["metrics.psnr"].to_pylist() == [31.5] * 5
    failures = pq.read_table(io.BytesIO(store.get("failures/part-000000.parquet")))
    assert failures["index"].to_pylist() == [1, 4]
    assert failures["error"].to_pylist() == ["rank 1 died"] * 2
    assert (success.rows, success.failed) == (5, 2)
    assert Success.from_json(store.get("manifest/_SUCCESS")) == success
    assert manifest.failed_ids(store, success) == {items[1].id, items[4].id}


def test_a_part_is_a_pure_function_of_its_receipts(job, items, store):
    finish(job, items)
    part = store.get(job.part_key(0))
    store.delete(job.part_key(0))
    job.close_shard(0, items)
    assert store.get(job.part_key(0)) == part
    job.finish([0])  # a second driver ends the same way


def test_a_shard_of_failures_alone_is_closed_too(job, items, store):
    finish(job, items, failed=range(7))
    assert job.open_shards(items) == {}
    assert pq.read_table(io.BytesIO(store.get(job.part_key(0)))).num_rows == 0


def test_odd_prompts_survive_receipt_and_part(job, items, store):
    odd = "nul \x00, escape \x1b[31m, مرحبا, " + "x" * 1_000_000
    job.commit(row_of(items[0], job, prompt=odd))
    job.close_shard(0, items[:1])
    assert manifest.read_rows(store.get(job.part_key(0)))[0]["prompt"] == odd


def test_a_retry_round_adds_rows_and_rewrites_nothing(job, items, store, tmp_path):
    before = finish(job, items, failed={1, 4, 5})
    committed = contents(tmp_path)
    retry_round = Manifest(store, 1)
    failed = [items[1], items[4], items[5]]
    assert retry_round.open_shards(failed) == {0: failed}
    after = finish(retry_round, failed, failed={4}, before=before)
    assert {**contents(tmp_path), **committed} == contents(tmp_path)
    assert (after.rows, after.failed) == (6, 1)
    assert [key for key, _ in after.parts] == [
        "manifest/parts/part-000000.parquet",
        "manifest/parts/part-000000-r1.parquet",
    ]
    assert [key for key, _ in after.failures] == ["failures/part-000000-r1.parquet"]
    assert Success.from_json(store.get("manifest/_SUCCESS.r1")) == after
    assert manifest.finished(store) == (retry_round, after)
    rows = [row for key, _ in after.parts for row in manifest.read_rows(store.get(key))]
    assert sorted(row["index"] for row in rows) == [0, 1, 2, 3, 5, 6]


def test_the_tenth_retry_round_comes_after_the_ninth(job, items, store):
    success = finish(job, items, failed={0})
    for retry_round in range(1, 11):
        success = finish(Manifest(store, retry_round), items[:1], failed={0}, before=success)
    last = manifest.finished(store)
    assert last is not None
    assert last[0].retry_round == 10


def test_nothing_is_finished_before_its_success_is_written(job, items, store):
    assert manifest.finished(store) is None
    job.commit(row_of(items[0], job))
    assert manifest.finished(store) is None


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"[" * 100_000, b'{"rows": 1, "parts": 3}'])
def test_a_damaged_success_is_said_and_not_believed(job, items, store, tmp_path, damaged):
    finish(job, items)
    (tmp_path / "manifest" / "_SUCCESS").write_bytes(damaged)
    with pytest.raises(StoreError, match=r"_SUCCESS is damaged.*jobs.verify"):
        manifest.finished(store)


def test_success_is_json_that_others_can_read(job, items, store):
    finish(job, items)
    content = json.loads(store.get("manifest/_SUCCESS"))
    assert set(content) == {"rows", "failed", "parts", "failures"}
    assert set(content["parts"][0]) == {"key", "sha256"}
